"""Markdown on a terminal: what each block looks like, and that nothing of a text is lost."""

import re

import pytest

from erniechat.ui.markdown.highlight import LineHighlighter
from erniechat.ui.markdown.layout import ansi, cut, wrap
from erniechat.ui.markdown.math import to_unicode
from erniechat.ui.markdown.render import Look
from erniechat.ui.markdown.stream import MarkdownStream, as_if_closed
from erniechat.ui.text import display_width
from tests.ui.markdown_documents import DOCUMENTS

STYLE = re.compile(r"\x1b\[[\d;]*m")


def drawn(text: str, width: int = 60, look: Look | None = None) -> list[str]:
    """The lines of a whole text, styles as they are."""
    stream = MarkdownStream(look or Look())
    stream.feed(text)
    return [*stream.finished(width), *stream.close(width)]


def plain(text: str, width: int = 60) -> list[str]:
    """The lines of a whole text without their styles."""
    return [STYLE.sub("", line) for line in drawn(text, width)]


# --- blocks


def test_headings_are_left_aligned_and_styled_by_level():
    assert drawn("# One\n## Two\n### Three") == [
        "\x1b[1;4mOne\x1b[0m", "", "\x1b[1mTwo\x1b[0m", "", "\x1b[1;3mThree\x1b[0m",
    ]  # fmt: skip


def test_line_breaks_of_the_source_stay():
    assert plain("one\ntwo  \nthree\n\nfour") == ["one", "two", "three", "", "four"]


def test_lists_hang_and_keep_the_blank_lines_of_the_source():
    assert plain("Intro:\n- a long item of words\n  - b\n\n  more\n- c", 20) == [
        "Intro:",
        "",
        "  • a long item of",
        "    words",
        "    ◦ b",
        "",
        "    more",
        "  • c",
    ]


def test_numbers_count_on_from_the_first():
    assert plain("9. a\n9. b\n\n3) c") == ["  9. a", "  10. b", "", "  3) c"]


def test_a_table_is_aligned_in_columns_of_wide_characters_too():
    assert plain("| 名称 | n |\n|---|--:|\n| 你好世界 | 1 |\n| `a` **b** | 1234 |") == [
        "名称         n",
        "────────  ────",
        "你好世界     1",
        "a b       1234",
    ]


def test_a_table_that_does_not_fit_wraps_its_cells_then_becomes_entries():
    table = "| name | what |\n|--|--|\n| first | it has many words |\n| second | x |"
    assert plain(table, 20) == [
        "name    what",
        "──────  ────────────",
        "first   it has many",
        "        words",
        "",
        "second  x",
    ]
    assert plain(table, 12) == [
        "name: first",
        "what: it has",
        "many words",
        "",
        "name: second",
        "what: x",
    ]


def test_a_row_with_more_cells_than_the_header_is_not_cut():
    assert "| 1 | 2 | 3 |" in plain("| a | b |\n|--|--|\n| 1 | 2 | 3 |")


def test_code_has_no_padding_and_no_blanks_at_the_ends():
    assert plain("```python\nif x:\n\n    y  \n```") == ["```python", "if x:", "", "    y", "```"]


def test_code_is_coloured_by_the_name_of_its_fence_and_never_guessed():
    assert drawn("```python\nreturn 1\n```")[1] == "\x1b[35mreturn\x1b[0m \x1b[36m1\x1b[0m"
    assert drawn("```\nreturn 1\n```")[1] == drawn("```nosuch\nreturn 1\n```")[1] == "return 1"


@pytest.mark.parametrize("language", ["python", "yaml", "json", "bash", "html", "c++", "console"])
def test_colouring_changes_no_character(language: str):
    code = 'a: "b\n  {% x %} \' \\ `$(y)` <p>\n$ ls\n>>> """\n\t/* c\n*/ end'
    highlighter = LineHighlighter(language)
    for line in code.split("\n"):
        assert "".join(text for text, _ in highlighter.line(line)) == line


def test_the_state_of_code_goes_over_the_end_of_a_line():
    highlighter = LineHighlighter("python")
    highlighter.line('x = """one')
    assert highlighter.line("two") == [("two", "32")]
    assert highlighter.line('"""')[-1][1] == "32"
    assert highlighter.line("two")[0] == ("two", "")


def test_quotes_and_rules():
    assert plain("> one\n> two\n\n---", 70) == ["│ one", "│ two", "", "─" * 40]


@pytest.mark.parametrize(
    "text",
    [
        "<think>hm</think>",
        "<div>\n<b>x</b>\n</div>",
        "List<int> and <T>",
        "a &lt; b &#27; c",
        r"\( open and \] and C:\new\table and \d+\.\w and \\host\share",
        "[ref][1]\n\n[1]: https://late.example",
        "See[^1].\n\n[^1]: A note.",
        "$0.02, $5 and $10, $HOME/$USER",
        "2*3*4 and snake_case_name and ** no **",
        "https://a.b/c_d_e",
    ],
)
def test_what_is_not_markdown_survives(text: str):
    assert "\n".join(plain(text)) == text


def test_a_link_shows_where_it_leads():
    assert plain("[here](https://a.b) <https://a.b> ![pic](p.png)") == [
        "here (https://a.b) https://a.b [image: pic] (p.png)"
    ]


def test_chinese_emphasis_needs_no_blanks():
    assert drawn("他说**“好”**吗，**重点：**是") == [
        "他说\x1b[1m“好”\x1b[0m吗，\x1b[1m重点：\x1b[0m是"
    ]


def test_without_styles_the_marks_stay():
    text = "# One\n\n**bold** *it* ~~gone~~ `code`\n\n> quote"
    assert drawn(text, look=Look(styled=False)) == text.split("\n")


def test_without_unicode_only_ascii_is_added():
    text = "- a\n  - b\n\n> q\n\n---\n\n| a |\n|--|\n| b |\n\n$x^2$"
    assert all(line.isascii() for line in drawn(text, look=Look(styled=False, utf8=False)))


def test_control_characters_never_come_out_of_an_entity_or_an_address():
    text = "&#27;[2J [a](&#x1b;]52;) ![b](&#x9b;) `&#7;`\n\n```&#27;\n&#27;\n```"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", "\n".join(plain(text)))


# --- lines


@pytest.mark.parametrize("width", [8, 13, 40])
def test_no_line_of_any_document_is_wider_than_the_width(width: int):
    for name in DOCUMENTS.keys() - {"python", "languages", "docstring", "unclosed-fence", "tabs"}:
        stream = MarkdownStream(Look())
        stream.feed(re.sub("`{3,}|~~~", "", DOCUMENTS[name]))  # code is the terminal's to wrap
        for line in stream.close(width):
            assert display_width(STYLE.sub("", line)) <= width, (name, line)


def test_a_word_of_two_styles_is_one_word():
    lines = wrap([("one two", ""), ("three", "1"), (" four", "")], 9)
    assert [ansi(line) for line in lines] == ["one", "two\x1b[1mthree\x1b[0m", "four"]


def test_no_line_starts_with_a_closing_mark_or_ends_with_an_opening_one():
    lines = wrap([("一二三四，五六（七八）九", "")], 8)
    found = ["".join(text for text, _ in line) for line in lines]
    assert found == ["一二三", "四，五六", "（七八）", "九"]


def test_code_is_cut_where_the_line_is_full():
    assert cut([("abc", "1"), ("def", "")], 4) == [[("abc", "1"), ("d", "")], [("ef", "")]]
    assert cut([("短短短", "")], 5) == [[("短短", "")], [("短", "")]]


# --- formulas


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (r"x^2 + y_1^{10} \leq \frac{1}{2}", "x² + y₁¹⁰ ≤ 1/2"),
        (r"\frac{-b \pm \sqrt{b^2 - 4ac}}{2a}", "(−b ± √(b² − 4ac))/(2a)"),
        (r"e^{i\pi} + 1 = 0", "e^(iπ) + 1 = 0"),
        (r"\sum_{i=1}^{n} x_i", "∑ᵢ₌₁ⁿ xᵢ"),
        (r"\int_0^\infty e^{-x} dx", "∫₀^∞ e⁻ˣ dx"),
        (r"s_{i+1} = s_i^2 - 2 \pmod{2^{61}-1}", "sᵢ₊₁ = sᵢ² − 2 (mod 2⁶¹−1)"),
        (r"\sin^2\theta + \cos^2 \theta", "sin²θ + cos² θ"),
        (r"\left( \frac{\partial f}{\partial x} \right)", "(∂f/∂x)"),
        (r"\begin{pmatrix} a & b \\ c & d \end{pmatrix}", "(a b; c d)"),
        (r"\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}", "x = 1\ny = 2"),
        (r"\text{Area of } A \in \mathbb{R}", "Area of A ∈ ℝ"),
        (r"\vec{v} \cdot \boxed{42}", "v⃗ · 42"),
        (r"\unknown{x}", None),
        (r"x^", None),
        (r"{x", None),
        (r"\begin{tikzpicture}\end{tikzpicture}", None),
        ("{" * 500, None),
    ],
)
def test_formulas(source: str, shown: str | None):
    assert to_unicode(source) == shown


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (r"so \(x^2\) and $\alpha$", ["so x² and α"]),
        ("so\n\\[\nE = mc^2\n\\]\nend", ["so", "", "  E = mc²", "", "end"]),
        ("$$a \\neq b$$.", ["  a ≠ b."]),
        (r"$\nosuch{x}$ and $x_1*y*z$", [r"$\nosuch{x}$ and x₁*y*z"]),
        ("`$x^2$` and\n\n```\n$x^2$\n```", ["$x^2$ and", "", "```", "$x^2$", "```"]),
        ("$a+b$, $n$, $2n-1$, $f(x)$ and $12$", ["a+b, n, 2n−1, f(x) and 12"]),
        ("$5-$10, $5,$6, US$5 or 6$, $a word$", ["$5-$10, $5,$6, US$5 or 6$, $a word$"]),
        ("it costs $5 and 3$, or $0.02/$0.03", ["it costs $5 and 3$, or $0.02/$0.03"]),
        ("$HOME_DIR and $PATH_X", ["$HOME_DIR and $PATH_X"]),
        ("\\[\nx^2\n\n- not closed", ["\\[", "x^2", "", "  • not closed"]),
    ],
)
def test_where_a_formula_is_one(text: str, lines: list[str]):
    assert plain(text) == lines


# --- the unfinished end


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("a **bo", "a **bo**"),
        ("a **bold*", "a **bold**"),
        ("a **bold**", "a **bold**"),
        ("a *it", "a *it*"),
        ("a `co", "a `co`"),
        ("a `x ** y", "a `x ** y`"),
        ("see [the page](https://exa", "see the page"),
        ("text\n``", "text\n"),
        ("* item", "* item"),
        ("**done**\n\nnext **wo", "**done**\n\nnext **wo**"),
    ],
)
def test_open_marks_are_drawn_as_if_closed(text: str, closed: str):
    assert as_if_closed(text) == closed
