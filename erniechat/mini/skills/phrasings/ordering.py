"""Phrasings of comparing, sorting and sequences."""

COMPARE = [
    "Which is {w}, {x} or {y}?",
    "Which number is {w}: {x} or {y}?",
    "What is {w}, {x} or {y}?",
    "{x} or {y}, which is {w}?",
    "Is {x} {w} than {y}?",
    "compare {x} and {y}",
    "Which one is {w}: {x}, {y}?",
    "{w}: {x} or {y}?",
    "Compare {x} with {y}.",
]

SORT_UP = [
    "Sort {l}",
    "Sort these numbers: {l}",
    "Put {l} in order.",
    "Sort {l} from smallest to largest.",
    "Arrange {l} in ascending order.",
    "sort ascending: {l}",
    "Order these numbers: {l}",
    "Can you sort {l}?",
    "Please sort the list {l}",
    "Sort the numbers {l} in increasing order.",
    "{l} sorted",
    "{l} in order please",
    "sort {l} for me",
    "Rank {l} from low to high.",
    "order {l}",
]

SORT_DOWN = [
    "Sort {l} from largest to smallest.",
    "Sort {l} in descending order.",
    "Arrange {l} from high to low.",
    "sort descending: {l}",
    "Put {l} in decreasing order.",
    "Sort these numbers, biggest first: {l}",
]

LARGEST = [
    "What is the largest of {l}?",
    "Which is the biggest: {l}?",
    "max of {l}",
    "Find the maximum of {l}.",
    "largest number in {l}",
]

SMALLEST = [
    "What is the smallest of {l}?",
    "Which is the smallest: {l}?",
    "min of {l}",
    "Find the minimum of {l}.",
    "smallest number in {l}",
]

NEXT = [
    "What comes next: {l}?",
    "{l}, ...?",
    "What is the next number: {l}, ?",
    "Continue: {l}",
    "Next number in {l}?",
    "complete the sequence {l}",
]

TIMES_TABLE = [
    "Show me the {n} times table.",
    "Multiplication table of {n}",
    "times table of {n}",
    "Write the table of {n}.",
    "Can you print the multiplication table for {n}?",
]

COUNT_UP = [
    "Count from {a} to {b}.",
    "count {a} to {b}",
    "List the numbers from {a} to {b}",
    "Can you count from {a} to {b}?",
]

COUNT_DOWN = [
    "Count down from {b} to {a}.",
    "count backwards from {b} to {a}",
    "Countdown from {b} to {a}",
]
