"""A minute of diverse prompts, so that a fresh model knows which experts are used."""

import time
from collections.abc import Callable

from erniechat.backend import ChatBackend
from erniechat.chat.conversation import Message
from erniechat.options import SamplingOptions

# What people ask for: prose, facts, sums, code, tables, other languages, roles, long and short.
PROMPTS = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "What is 17 + 25? And what is 348 * 12? Show the steps.",
    "Write a Python function that merges two sorted lists, with a docstring and tests.",
    "用三句话解释一下什么是光合作用。",
    "Explain to a ten-year-old why the sky is blue.",
    "Translate into French: The meeting has been moved to Thursday afternoon.",
    "List the planets of the solar system with their diameters as a Markdown table.",
    "请写一封邮件，向客户说明订单会推迟两天发货。",
    "Summarize the causes of the First World War in five bullet points.",
    "Fix this SQL: SELEC name, COUNT(*) FROM users GROUP name HAVING COUNT(*) > 1;",
    "Give me a recipe for vegetable soup for four people.",
    'Answer as JSON with the keys "city" and "country": where is the Eiffel Tower?',
    "写一首关于秋天的七言绝句。",
    "A train leaves at 9:40 and arrives at 13:05. How long does the journey take?",
    "Compare TCP and UDP. When would you use which?",
    "Schreibe eine kurze Bewerbung als Softwareentwicklerin.",
    "Prove that the square root of two is irrational.",
    "¿Cuáles son las ventajas de la energía solar?",
    "You are a doctor. A patient has had a headache for three days. What do you ask?",
    "Write a bash script that renames all .jpeg files in a folder to .jpg.",
    "请解释这段代码的作用：for i in range(10): print(i ** 2)",
    "What does the word house mean? Use it in two sentences.",
    "Continue: Once upon a time, in a kingdom by the sea,",
    "What should I see in Rome in two days? Plan the mornings and the evenings.",
)
MAX_SECONDS = 60.0
MAX_TOKENS = 64


def calibrate(
    engine: ChatBackend, report: Callable[[str], None], max_seconds: float = MAX_SECONDS
) -> int:
    """Answer the prompts, each with a few tokens, until all are done or the time is over.

    The engine counts what was routed, and keeps it when it is closed.

    Args:
        engine: A model.
        report: Told in a line how far it is.
        max_seconds: No further prompt is begun, and no further token written, after these.

    Returns:
        How many prompts were answered, the last perhaps not to its end.
    """
    deadline = time.monotonic() + max_seconds
    sampling = SamplingOptions(max_tokens=MAX_TOKENS, seed=0)
    for done, prompt in enumerate(PROMPTS):
        left = deadline - time.monotonic()
        if left <= 0:
            return done
        report(f"calibrating: {done} of {len(PROMPTS)} prompts, {left:.0f} s at most")
        if engine.info.has_chat_template:
            events = engine.stream_reply([Message("user", prompt)], sampling)
        else:
            events = engine.stream_completion(prompt, sampling)
        for _ in events:
            if time.monotonic() > deadline:
                engine.cancel()
    return len(PROMPTS)
