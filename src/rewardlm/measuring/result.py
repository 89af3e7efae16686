"""What every part of a ``Comparison`` is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]


class Result(BaseModel):
    """Results can't be changed, and an unknown key is an error."""

    # Pydantic builds these classes when one is first used, so commands that compare nothing don't wait for it.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True)


class ShareChange(Result):
    """A change from the baseline, in a share of something other than toxicity."""

    from_: str = Field(alias="from", description="The baseline's label.")
    n: int = Field(description="Pairs of answers.")
    delta: float | None = Field(description="The share minus the baseline's.")
    delta_ci95: Interval | None = Field(description="Its 95 % interval, over prompts.")
    p_value: float | None = Field(description="From the test that goes with the interval.")
