"""What every learning test runs under."""

from collections.abc import Iterator

import pytest

from diffcps.diffusion import sampler


@pytest.fixture(scope="module", autouse=True)
def looped_chains() -> Iterator[None]:
    """Reverse chains as loops, which compile sooner; that nothing else changes is held by tests/diffusion."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "UNROLL", 1)
        yield
