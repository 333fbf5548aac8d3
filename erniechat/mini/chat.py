"""The chat format, as text: what chat_template.jinja renders, plus the model's own reply.

It follows the format of ERNIE-4.5-21B-A3B-Thinking. One difference: thinking can be switched off;
then the system turn says think_mode=False and the prompt ends with an empty think section.
"""

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

# Around a stretch of a reply that is to be encoded one character per token (a reversed word, say).
# Never shown or stored.
CHARS_ON, CHARS_OFF = "\ue000", "\ue001"


def visible(text: str) -> str:
    """The text without the marks for the tokenizer."""
    return text.replace(CHARS_ON, "").replace(CHARS_OFF, "")


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _calls_text(calls: Sequence[dict[str, Any]], after_content: bool) -> str:
    rendered = ""
    for call_idx, outer in enumerate(calls):
        call = outer.get("function", outer)
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = _to_json(arguments)
        rendered += "\n" if call_idx or after_content else ""
        body = f'{{"name": "{call["name"]}", "arguments": {arguments}}}'
        rendered += f"\n<tool_call>\n{body}\n</tool_call>\n"
    return rendered


def _system_turn(system: str, tools: Sequence[dict[str, Any]], thinking: bool) -> str:
    setting = f"<system_setting>\n{system}\n</system_setting>\n\n" if system else ""
    turn = (
        f"<|im_start|>system\n{setting}<global_setting>\nthink_mode={thinking}\n</global_setting>"
    )
    if tools:
        items = ",".join(
            '{"type": "function", "function": ' + _to_json(tool["function"]) + "}" for tool in tools
        )
        turn += f"\n\n<tool_list>\n[{items}]\n</tool_list>"
    return turn + "<|im_end|>\n\n"


def _assistant_turn(message: Message, in_tool_loop: bool) -> str:
    """Thoughts stay only inside the running tool loop; older thinking is dropped."""
    turn = "<|im_start|>assistant\n"
    content = message.get("content")
    if in_tool_loop and message.get("thoughts"):
        turn += f"<think>\n{message['thoughts']}\n</think>\n"
    if content:
        turn += f"<response>\n{content}\n</response>\n"
    return turn + _calls_text(message.get("tool_calls") or [], bool(content)) + "<|im_end|>\n\n"


def render_prompt(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    thinking: bool = True,
) -> str:
    """Render a conversation up to the place where the model goes on.

    Args:
        messages: Turns with ``role`` and ``content``; an assistant's may have ``thoughts`` and
            ``tool_calls``. A first system turn becomes the system prompt.
        tools: Tool schemas in the OpenAI format.
        thinking: Whether the model is to think before it answers.
    """
    turns = list(messages)
    system = turns.pop(0)["content"] if turns and turns[0]["role"] == "system" else ""
    rendered = _system_turn(system, tools or [], thinking)
    last_query = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    roles = [None, *(turn["role"] for turn in turns), None]
    for turn_idx, turn in enumerate(turns):
        role = turn["role"]
        if role in ("user", "system"):
            rendered += f"<|im_start|>{role}\n{turn['content']}<|im_end|>\n\n"
        elif role == "assistant":
            rendered += _assistant_turn(turn, turn_idx > last_query)
        elif role == "tool":
            rendered += "<|im_start|>tool" if roles[turn_idx] != "tool" else ""
            rendered += f"\n<tool_output>{_to_json(turn['content'])}</tool_output>"
            rendered += "<|im_end|>\n\n" if roles[turn_idx + 2] != "tool" else ""
    return rendered + "<|im_start|>assistant\n<think>\n" + ("" if thinking else "</think>\n")


def render_reply(
    thoughts: str,
    content: str,
    tool_calls: Sequence[dict[str, Any]] | None = None,
    thinking: bool = True,
) -> str:
    """Render what the model is to write after the prompt."""
    rendered = f"{thoughts}\n</think>\n" if thinking else ""
    if content:
        rendered += f"<response>\n{content}\n</response>\n"
    return rendered + _calls_text(tool_calls or [], bool(content)) + "<|im_end|>"


def parse_reply(text: str, thinking: bool = True) -> tuple[str, str, list[Any] | None]:
    """Split a generated reply.

    Returns:
        Thoughts, visible content and tool calls; the calls are None where their JSON is broken.
    """
    thoughts = ""
    if thinking:
        thoughts, _, text = text.partition("</think>")
    text = text.split("<|im_end|>")[0]
    calls = []
    while "<tool_call>" in text:
        before, _, rest = text.partition("<tool_call>")
        body, _, after = rest.partition("</tool_call>")
        try:
            calls.append(json.loads(body))
        except ValueError:
            return thoughts.strip(), text.strip(), None
        text = before + after
    content = text.replace("<response>", "").replace("</response>", "").strip()
    return thoughts.strip(), content, calls
