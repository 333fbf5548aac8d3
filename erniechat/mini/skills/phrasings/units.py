"""Units and the phrasings of their conversion."""

# (larger unit, its spellings, factor, smaller unit, its spellings)
UNITS: list[tuple[str, list[str], int, str, list[str]]] = [
    ("kilometers", ["km", "kilometers", "kilometres"], 1000, "meters", ["m", "meters", "metres"]),
    ("meters", ["m", "meters", "metres"], 100, "centimeters", ["cm", "centimeters", "centimetres"]),
    ("centimeters", ["cm", "centimeters"], 10, "millimeters", ["mm", "millimeters"]),
    ("meters", ["m", "meters"], 1000, "millimeters", ["mm", "millimeters"]),
    ("kilograms", ["kg", "kilograms", "kilos"], 1000, "grams", ["g", "grams"]),
    ("tons", ["t", "tons", "tonnes"], 1000, "kilograms", ["kg", "kilograms"]),
    ("grams", ["g", "grams"], 1000, "milligrams", ["mg", "milligrams"]),
    ("liters", ["l", "liters", "litres"], 1000, "milliliters", ["ml", "milliliters"]),
    ("hours", ["h", "hours"], 60, "minutes", ["min", "minutes"]),
    ("minutes", ["min", "minutes"], 60, "seconds", ["s", "seconds"]),
    ("days", ["days"], 24, "hours", ["h", "hours"]),
    ("weeks", ["weeks"], 7, "days", ["days"]),
    ("years", ["years"], 12, "months", ["months"]),
    ("feet", ["ft", "feet"], 12, "inches", ["in", "inches"]),
    ("yards", ["yd", "yards"], 3, "feet", ["ft", "feet"]),
    ("pounds", ["lb", "pounds"], 16, "ounces", ["oz", "ounces"]),
    ("gallons", ["gallons"], 4, "quarts", ["quarts"]),
    ("kilobytes", ["kB", "KB", "kilobytes"], 1000, "bytes", ["bytes"]),
    ("gigabytes", ["GB", "gigabytes"], 1000, "megabytes", ["MB", "megabytes"]),
    ("dozen", ["dozen"], 12, "pieces", ["pieces"]),
]

CONVERT = [
    "Convert {n} {a} to {b}.",
    "How many {b} are {n} {a}?",
    "{n} {a} in {b}",
    "What is {n} {a} in {b}?",
    "How many {b} are in {n} {a}?",
    "{n} {a} to {b}",
    "How many {b} is {n} {a}?",
    "Change {n} {a} into {b}",
    "{n} {a} = ? {b}",
    "How much is {n} {a} in {b}?",
    "express {n} {a} in {b}",
]

CELSIUS = [
    "Convert {c} Celsius to Fahrenheit.",
    "What is {c} °C in °F?",
    "{c} degrees Celsius in Fahrenheit",
    "{c}C to F",
    "How much is {c} degrees C in F?",
]

FAHRENHEIT = [
    "Convert {f} Fahrenheit to Celsius.",
    "What is {f} °F in °C?",
    "{f} degrees Fahrenheit in Celsius",
    "{f}F to C",
]
