"""Written arithmetic: the steps of a sum, difference, product and quotient, as lines of text."""

from random import Random

ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
PLACES = ["ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands"]


def random_number(rng: Random, num_digits: int) -> int:
    """Draw a number of so many digits; one digit includes zero."""
    return rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits)


def spell_number(number: int) -> str:
    """Write a number below a million in words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + ("-" + ONES[number % 10] if number % 10 else "")
    if number < 1000:
        rest = " and " + spell_number(number % 100) if number % 100 else ""
        return ONES[number // 100] + " hundred" + rest
    rest = " " + spell_number(number % 1000) if number % 1000 else ""
    return spell_number(number // 1000) + " thousand" + rest


def add_steps(left: int, right: int) -> list[str]:
    """Add column by column, from the right."""
    lines, carry = [], 0
    for place_idx in range(max(len(str(left)), len(str(right)))):
        upper, lower = left // 10**place_idx % 10, right // 10**place_idx % 10
        total = upper + lower + carry
        carried = f" + {carry}" if carry else ""
        line = f"{PLACES[place_idx]}: {upper} + {lower}{carried} = {total}"
        carry = total // 10
        lines.append(line + (f", write {total % 10}, carry 1" if carry else f", write {total}"))
    if carry:
        lines.append("carry 1 to the front")
    return [*lines, f"{left} + {right} = {left + right}"]


def subtract_steps(left: int, right: int) -> list[str]:
    """Subtract column by column; a negative result by the difference the other way round."""
    result = f"{left} - {right} = {left - right}"
    if left < right:
        why = f"{left} is less than {right}, so the result is negative: {right} - {left}"
        return [why, *subtract_steps(right, left), result]
    lines, borrow = [], 0
    for place_idx in range(len(str(left))):
        upper, lower = left // 10**place_idx % 10, right // 10**place_idx % 10
        need = lower + borrow
        lent = upper < need
        shown = upper + 10 if lent else upper
        borrowed = " - 1" if borrow else ""
        line = f"{PLACES[place_idx]}: {shown} - {lower}{borrowed} = {shown - need}"
        borrow = int(lent)
        lines.append(line + (", borrow 1" if lent else ""))
    return [*lines, result]


def times_digit(number: int, digit: int) -> str:
    """Multiply a number by one digit, as one line."""
    if number < 10 or digit == 0:
        return f"{number} × {digit} = {number * digit}"
    parts, carry = [], 0
    digits = [int(character) for character in reversed(str(number))]
    for place_idx, factor in enumerate(digits):
        product = factor * digit + carry
        part = f"{factor} × {digit}" + (f" + {carry}" if carry else "") + f" = {product}"
        last = place_idx == len(digits) - 1
        carry = 0 if last else product // 10
        if not last:
            part += f" write {product % 10}" + (f" carry {carry}" if carry else "")
        parts.append(part)
    return "; ".join(parts) + f"; so {number} × {digit} = {number * digit}"


def multiply_steps(left: int, right: int) -> list[str]:
    """Multiply by the digits of the shorter factor (at most two), then add."""
    if len(str(right)) > len(str(left)):
        return [f"{left} × {right} = {right} × {left}", *multiply_steps(right, left)]
    if right < 10:
        return [times_digit(left, right)]
    tens, ones = right // 10, right % 10
    result = f"{left} × {right} = {left * right}"
    if ones == 0:
        return [times_digit(left, tens), result]
    return [
        f"{right} = {tens * 10} + {ones}",
        times_digit(left, ones),
        times_digit(left, tens),
        f"{left} × {tens * 10} = {left * tens * 10}",
        *add_steps(left * tens * 10, left * ones),
        result,
    ]


def divide_steps(dividend: int, divisor: int) -> list[str]:
    """Divide digit by digit."""
    lines, rest, quotient = [], 0, ""
    for character in str(dividend):
        rest = rest * 10 + int(character)
        digit = rest // divisor
        if quotient or digit:
            product = digit * divisor
            lines.append(
                f"{rest} / {divisor}: {digit} × {divisor} = {product}, rest {rest - product}"
            )
            quotient += str(digit)
        rest -= digit * divisor
    return [*lines, f"digits {quotient or 0}" + (f", rest {rest}" if rest else ", nothing left")]


def solve(left: int, operator: str, right: int) -> tuple[list[str], str, str]:
    """Solve one sum; the operator is ``+``, ``-``, ``×`` or ``/``.

    Returns:
        The steps, the result and the equation to show.
    """
    if operator == "+":
        return add_steps(left, right), str(left + right), f"{left} + {right} = {left + right}"
    if operator == "-":
        return subtract_steps(left, right), str(left - right), f"{left} - {right} = {left - right}"
    if operator == "×":
        return multiply_steps(left, right), str(left * right), f"{left} × {right} = {left * right}"
    quotient, rest = divmod(left, right)
    text = f"{quotient}" + (f" remainder {rest}" if rest else "")
    return divide_steps(left, right), text, f"{left} / {right} = {text}"
