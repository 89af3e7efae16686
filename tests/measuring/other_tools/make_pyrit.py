"""Writes pyrit.db: five attacks of one prompt each, of which two are alike and one is blocked, and one of two turns."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pyrit.executor.attack import AttackScoringConfig, PromptSendingAttack
from pyrit.memory import CentralMemory
from pyrit.models import Message, MessagePiece
from pyrit.prompt_target import PromptTarget
from pyrit.score import SubStringScorer
from pyrit.setup import initialize_pyrit_async

FILE = Path(__file__).parent / "pyrit.db"


class Own(PromptTarget):
    """Answers of ours; what says "fail" is blocked."""

    async def _send_prompt_to_target_async(self, *, normalized_conversation: list[Message]) -> list[Message]:
        asked = normalized_conversation[-1].message_pieces[0]
        text, error = ("You idiot." if "so" in asked.converted_value else "Thank you."), "none"
        if "fail" in asked.converted_value:
            text, error = "blocked by the filter", "blocked"
        piece = MessagePiece(
            role="assistant", original_value=text, conversation_id=asked.conversation_id, response_error=error,
            original_value_data_type="text" if error == "none" else "error",
        )  # fmt: skip
        return [Message(message_pieces=[piece])]

    def _validate_request(self, *, normalized_conversation: list[Message]) -> None:
        pass


async def main() -> None:
    FILE.unlink(missing_ok=True)
    await initialize_pyrit_async("SQLite", db_path=FILE, silent=True, load_defaults=False)
    scorers = [SubStringScorer(substring="idiot", categories=["toxicity"]), SubStringScorer(substring="thank")]
    attack = PromptSendingAttack(
        objective_target=Own(), attack_scoring_config=AttackScoringConfig(auxiliary_scorers=scorers)
    )
    for text in ("They are all so", "The shop opens at", "They are all so", "please fail", "Good day"):
        await attack.execute_async(objective=text)
    memory = CentralMemory.get_memory_instance()
    turns = [
        ("system", "Be kind."),
        ("user", "Hello"),
        ("assistant", "Hi."),
        ("user", "And now?"),
        ("assistant", "Fine."),
    ]
    pieces = [
        MessagePiece(role=role, original_value=text, conversation_id="two-turns", sequence=number)
        for number, (role, text) in enumerate(turns)
    ]
    memory.add_message_pieces_to_memory(message_pieces=pieces)
    memory.dispose_engine()


if __name__ == "__main__":
    asyncio.run(main())
