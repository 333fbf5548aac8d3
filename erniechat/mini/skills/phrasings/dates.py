"""Phrasings of questions about days, months and years."""

DAYS_AFTER = [
    "What day is {n} days after {d}?",
    "If today is {d}, what day is it in {n} days?",
    "Today is {d}. What day of the week is it in {n} days?",
    "Which weekday comes {n} days after {d}?",
    "{d} plus {n} days?",
    "What day will it be {n} days from {d}?",
    "It is {d}. Which day is it after {n} days?",
    "{n} days after {d}?",
    "Count {n} days from {d}.",
    "Today is {d}. In {n} days it is?",
    "what weekday is {n} days after {d}",
]

DAYS_BEFORE = [
    "What day was it {n} days before {d}?",
    "If today is {d}, what day was it {n} days ago?",
    "Today is {d}. Which day was {n} days ago?",
    "{d} minus {n} days?",
    "{n} days before {d}?",
    "what weekday was {n} days before {d}",
]

MONTH_LENGTH = [
    "How many days does {m} have?",
    "How many days are in {m}?",
    "days in {m}",
    "How long is {m}?",
    "How many days has {m}?",
    "Number of days in the month of {m}?",
]

LEAP_YEAR = [
    "Is {y} a leap year?",
    "Was {y} a leap year?",
    "leap year {y}?",
    "Is the year {y} a leap year?",
]

FEBRUARY = [
    "How many days does February {y} have?",
    "How many days are in February {y}?",
    "days in February {y}",
    "How many days has February in {y}?",
]

NEIGHBOUR_DAY = ["What day comes {w} {d}?", "Which day is {w} {d}?", "day {w} {d}"]
