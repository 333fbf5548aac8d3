"""What a model says about text, from its folder or its GGUF file: template, tokenizer, stops."""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

from erniechat.chat.generation_defaults import read_generation_config, sampling_defaults
from erniechat.chat.template import ChatTemplate
from erniechat.chat.tokenizer import TOKENIZER_FILE, Tokenizer
from erniechat.errors import CheckpointError
from erniechat.model.checkpoint import Checkpoint
from erniechat.model.gguf_checkpoint import GgufCheckpoint
from erniechat.prompts import PromptTools


def read_prompt_tools(
    path: Path,
    model: str,
    checkpoint: Checkpoint | None = None,
    vocab_size: int | None = None,
    parsed: Future[Tokenizer] | None = None,
) -> PromptTools:
    """Template and tokenizer of a model.

    Args:
        path: Its folder or GGUF file.
        model: Its name, for messages.
        checkpoint: The path's; needed only of a GGUF file.
        vocab_size: Rows of the model's embedding, to check that the two belong together.
        parsed: The tokenizer of a folder, where that is being parsed already.

    Raises:
        ModelError: If a file is missing or damaged.
    """
    if not isinstance(checkpoint, GgufCheckpoint):
        template = ChatTemplate.from_folder(path, model=model)
        tokenizer = parsed.result() if parsed else Tokenizer.from_folder(path)
        if vocab_size is not None:
            tokenizer.check_fits(vocab_size, path / TOKENIZER_FILE)
        return PromptTools(tokenizer, template, model)
    tokenizer = Tokenizer(checkpoint.vocabulary.build())
    if tokenizer.num_tokens > checkpoint.config["vocab_size"]:
        raise CheckpointError(
            f"{path.name} defines {tokenizer.num_tokens} tokens, but the model has only "
            f"{checkpoint.config['vocab_size']} (vocab_size)",
            "fetch the file again",
        )
    template = None
    if sources := checkpoint.chat_templates:
        special_tokens = checkpoint.vocabulary.special_tokens()
        template = ChatTemplate(sources, special_tokens=special_tokens, model=model)
    return PromptTools(tokenizer, template, model)


def read_generation_values(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a checkpoint says about sampling and stopping, as generation_config.json spells it.

    Raises:
        CheckpointError: If the file is damaged.
    """
    if not isinstance(checkpoint, GgufCheckpoint):
        return read_generation_config(path)
    try:
        sampling_defaults(checkpoint.generation_config)
    except CheckpointError as exc:
        reason = exc.message.removeprefix("generation_config.json: ")
        raise CheckpointError(f"{path.name}: {reason}", "fetch the file again") from exc
    return checkpoint.generation_config
