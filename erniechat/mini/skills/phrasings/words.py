"""Phrasings of questions about the letters of a word."""

WELL_KNOWN_WORDS = [
    "strawberry",
    "banana",
    "mississippi",
    "bookkeeper",
    "raspberry",
    "hello",
    "world",
    "apple",
    "committee",
    "coffee",
    "ernie",
]

QUOTES = ["{}", "{}", '"{}"', "'{}'", 'the word "{}"', "the word {}"]

LETTER = [
    "How many {c}'s are in {w}?",
    "How many {c}s are there in {w}?",
    "Count the letter {c} in {w}.",
    "How often does {c} appear in {w}?",
    "How many times does the letter {c} occur in {w}?",
    "how many {c} in {w}",
    "number of {c}'s in {w}?",
    "How many letters {c} does {w} have?",
    'How many "{c}" are in {w}?',
    "Count the {c}'s in {w}",
    "{c} in {w}?",
    "how many of the letter {c} are in {w}",
    "Tell me how many {c}'s {w} contains.",
    "{w}: how many {c}?",
    "how frequent is {c} in {w}?",
    "Find the {c}'s in {w}. How many?",
]

LENGTH = [
    "How many letters are in {w}?",
    "How long is {w}?",
    "How many letters does {w} have?",
    "length of {w}",
    "Count the letters in {w}",
    "how many characters in {w}?",
]

VOWELS = [
    "How many vowels are in {w}?",
    "Count the vowels in {w}.",
    "vowels in {w}?",
    "How many vowels does {w} have?",
]

BACKWARDS = [
    "Reverse {w}.",
    "Spell {w} backwards.",
    "What is {w} spelled backwards?",
    "Write {w} in reverse.",
    "reverse {w}",
    "Can you reverse {w}?",
    "{w} backwards",
    "What is the reverse of {w}?",
    "backwards: {w}",
    "{w} reversed",
    "Flip the letters of {w}.",
    "Write {w} from back to front.",
    "mirror {w}",
    "turn {w} around",
]

SPELL = [
    "Spell {w}.",
    "How do you spell {w}?",
    "Can you spell {w}?",
    "Spell out {w}",
    "spelling of {w}",
    "Spell {w} letter by letter.",
]

END_LETTER = [
    "What is the {k} letter of {w}?",
    "{k} letter of {w}",
    "Which letter does {w} {v} with?",
]

REPEAT = [
    "Repeat: {t}",
    "Say {t}",
    'Say "{t}".',
    "Repeat after me: {t}",
    'Please repeat "{t}"',
    "Echo {t}",
    "Write {t}",
    'Type exactly: "{t}"',
    "say: {t}",
]
