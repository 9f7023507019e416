"""The form of a table row: where the blocks and units of a transformer are, and what they return.

Data only. The rows are in `family_rows`; `families` finds them by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unicp.settings import Role

BlockReturn = Literal["hidden", "hidden_and_text", "text_and_hidden", "other"]


@dataclass(frozen=True)
class UnitRow:
    """One unit of a block.

    Attributes:
        attribute: Where the block keeps it, dotted if in a module of its own. A block that holds `None` there lacks it.
        role: What it does.
        text_keys: Whether its keys and values come from the text (and a conditioning image) alone, and so are the same
            at every step.
        slice_refusal: Why its attention cannot run at reduced width; "" = it can.
        needs: Another attribute without which a block calls this module more than once, so that it is no unit; "" =
            none.
    """

    attribute: str
    role: Role
    text_keys: bool = False
    slice_refusal: str = ""
    needs: str = ""


@dataclass(frozen=True)
class BlockListRow:
    """One list of blocks of a transformer.

    Attributes:
        attribute: Where the transformer keeps the list.
        units: In the order in which a block runs them.
        returns: "hidden" = the video tokens, (batch, tokens, channels), as one tensor; "hidden_and_text" = a tuple
            (video tokens, text tokens); "text_and_hidden" = the reverse; "other" = none of these, with a `refusal`.
        hidden_argument, text_argument: Names of a block's arguments that the returned tensors replace; `text_argument`
            is `None` unless the block returns the text.
        refusal: Why a block of this list cannot be skipped as one; "" = it can. Its units can still be skipped.
    """

    attribute: str
    units: tuple[UnitRow, ...]
    returns: BlockReturn = "hidden"
    hidden_argument: str = "hidden_states"
    text_argument: str | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Family:
    """One class of transformer, and its subclasses.

    Attributes:
        transformer: Name of the class.
        block_lists: Lists of blocks, in execution order.
        interleaved: Whether the lists run by turns (first block of each, second of each, …), not one after the other.
        stack_refusal: Why all blocks cannot be skipped as one; "" = they can.
        sample_argument, timestep_argument, text_argument: Names of the transformer's arguments.
        branch_arguments: Names of arguments by which guidance asks for another kind of call with the same text (layers
            to skip, streams to keep apart). A call with other values is another branch.
        step_arguments: Names of arguments that change at each step by their nature (a state that follows the sample),
            besides the usual ones. Any other argument that changes opens a new run.
        more_samples: Names of further samples (audio with video), in the order of the outputs after the first.
        timestep_scale, timestep_shift: shift + scale x the model's timestep is the usual one, which falls from about
            1000 at pure noise to 0.
        refusal: Why UniCP cannot be used with the model; "" = it can. A refused model has no block lists.
        noise_refusal: Why the noise level of a call is unknown, so that only the output is forecast; "" = the scheduler
            tells it.
        output_turned: Whether pipelines turn the output's sign before they give it to the scheduler.
        notes: What a reader of the row would stumble over.
    """

    transformer: str
    block_lists: tuple[BlockListRow, ...] = ()
    interleaved: bool = False
    stack_refusal: str = ""
    sample_argument: str = "hidden_states"
    timestep_argument: str = "timestep"
    text_argument: str = "encoder_hidden_states"
    branch_arguments: tuple[str, ...] = ()
    step_arguments: tuple[str, ...] = ()
    more_samples: tuple[str, ...] = ()
    timestep_scale: float = 1.0
    timestep_shift: float = 0.0
    refusal: str = ""
    noise_refusal: str = ""
    output_turned: bool = False
    notes: str = ""

    @property
    def profile_refusal(self) -> str:
        """Why no profile can be made of the model; "" = it can."""
        rising = self.output_turned or self.timestep_scale < 0
        return self.noise_refusal or ("profiles were not tried with timesteps that rise" if rising else "")
