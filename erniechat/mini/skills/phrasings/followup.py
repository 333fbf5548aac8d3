"""Phrasings of second and later turns."""

# The second country of a conversation, and the one that is asked for.
NEXT_COUNTRY_FIRST = ["And of {c}?", "and {c}?", "What about {c}?"]

NEXT_COUNTRY = [
    "And of {c}?",
    "and {c}?",
    "What about {c}?",
    "And for {c}?",
    "and of {c}",
    "And {c}?",
    "How about {c}?",
    "{c}?",
    "And what about {c}?",
    "same for {c}",
    "and in {c}?",
    "now {c}",
]

SAME_COUNTRY = {
    "capital": [
        "And its capital?",
        "and the capital?",
        "What is its capital?",
        "What's the capital there?",
        "And what is the capital?",
    ],
    "currency": [
        "And its currency?",
        "and the currency?",
        "What currency do they use there?",
        "How do they pay there?",
        "What money do they use?",
    ],
    "language": [
        "And the language?",
        "What language do they speak there?",
        "and its language?",
        "Which language is spoken there?",
    ],
    "continent": [
        "Where is it?",
        "Which continent is it on?",
        "And the continent?",
        "On which continent is that?",
    ],
}

GO_ON = {
    "+": [
        "and plus {b}?",
        "Now add {b}.",
        "Add {b} to that.",
        "plus {b}",
        "And {b} more?",
        "add {b}",
        "+ {b}",
    ],
    "-": [
        "and minus {b}?",
        "Now subtract {b}.",
        "Take away {b}.",
        "minus {b}",
        "subtract {b} from that",
        "- {b}",
    ],
    "×": [
        "times {b}",
        "Now multiply that by {b}.",
        "and times {b}?",
        "Multiply it by {b}.",
        "* {b}",
    ],
}

ANOTHER_SUM = [
    "And {e}?",
    "and {e}",
    "What about {e}?",
    "now {e}",
    "{e}?",
    "How about {e}?",
    "ok, and {e}?",
]

ARE_YOU_SURE = [
    "Are you sure?",
    "are you sure",
    "Really?",
    "Is that right?",
    "Check again.",
    "Please check that.",
    "Is this correct?",
    "Double check",
]

HOW = [
    "How did you get that?",
    "Show your work.",
    "Show me the steps.",
    "How do you know?",
    "Explain how.",
    "Explain the steps",
    "How did you calculate that?",
    "step by step please",
]

NEXT_UNIT = [
    "And {n} {a}?",
    "and {n}?",
    "What about {n} {a}?",
    "and {n} {a}",
    "{n}?",
    "How about {n}?",
]

NEXT_ELEMENT = ["And {e}?", "and of {e}?", "What about {e}?", "and {e}", "And for {e}?"]

NEXT_WORD = ["And {w}?", "and {w}", "What about {w}?", "And what does {w} mean?"]
