# ruff: noqa: E501  # the texts are data
"""Answers as models write them, whole and broken, for the tests that draw them."""

PROGRAM = "\n".join(
    f"def step_{number}(x: int) -> int:\n    return x * {number}  # a comment"
    for number in range(9)
)

DOCUMENTS = {
    "paragraphs": "One line.\nA second line of it.\n\nAnother paragraph, long enough to be wrapped"
    " on every terminal that is narrower than a poster in a station.",
    "headings": "# One `code`\n\nText.\n\n## Two **bold**\nText at once.\n\n### Three\n\nSetext\n"
    "===\n\nAlso\n---\n\n#hashtag is none\n\n####### nor is this",
    "nested-lists": "Intro:\n- a\n  - b\n    - c\n      continued\n    - d\n  - e\n- f\n\nEnd.",
    "loose-list": "- first\n\n  more of the first\n\n- second\n\n- third\n- tight\n\n\nAfter.",
    "numbered": "1. one\n1. two\n1. three\n   ```sh\n   ls -l\n   ```\n4. four\n\n7) seven\n8) eight",
    "long-numbers": "\n".join(f"{number}. item **{number}**" for number in range(8, 13)),
    "odd-lists": "-   wide\n  - sibling\n* star\n* [ ] todo\n* [x] done\n+\n+ after empty\n  lazy\n"
    "still lazy\n\n1986\\. A year.\n\n* * *\n- a\n**bold** lazily",
    "table": "| Name | Count |\n|:-----|------:|\n| apples | 3 |\n| pears and plums | 12 |\n\nEnd.",
    "wide-table": "说明：\n| 名称 | 描述 | 😀 |\n|---|:-:|--|\n| 你好 | 世界和平 | 👍 |\n| `代码` | "
    "**粗体** 与 *斜体* | 🎉🎉 |\n结束",
    "big-table": "| A | B | C | D |\n|--|--|--|--|\n"
    + "\n".join(f"| a cell with words {i} | x<br>y | $x_{i}$ | https://example.com/{i} |" for i in range(4)),
    "ragged-table": "| a | b |\n|--|--|\n| 1 |\n| 1 | 2 | 3 |\n| \\| | ` | ` |\nno pipe\n\na | b\nno | rule",
    "python": f"Here:\n\n```python\n{PROGRAM}\n```\nDone.",
    "languages": '```json\n{"a": [1, null], "b": "c"}\n```\n```yaml\na: |\n  text\n  more\nb: [1, 2]\n```\n'
    "```bash\nfor f in *; do echo \"$f\"; done  # all\n```\n```diff\n-old\n+new\n```\n```html\n<p\n"
    "class='x'>&amp;</p>\n```\n```c++\n/* a\n b */ int x;\n```\n```nosuchlanguage\nx\n```",
    "docstring": 'Code:\n\n~~~ python title="x"\ns = """one\n\ntwo\n"""\n\n\nx = 1\n~~~\n\n    indented\n\n      code\n\ntext',
    "fences-in-fences": "````markdown\n```python\nx\n```\n````\n\n   ```\n   indented\n  less\n     more\n   ```",
    "indented-fence": "   ```\n\tx\ty\n \tz\n   ```\nend",
    "empty-item": "- \n\n  - e\n- f\n-\n  g\n  - h",
    "longer-end": "```\ncode\n``\n`````\n\n~~~\nx\n```\n~~~~\nend",
    "unclosed-fence": "Look:\n```rust\nfn main() {\n\n    println!(\"hi\");\n\n\n}",
    "unclosed-marks": "This **is bold\n\nand *this\n\nand `that\n\nand [here](http://x\n\nand ~~gone\n\n- a **b",
    "html": "<div>\n<b>bold</b> and <br> and <T>\n</div>\n\n<!-- comment -->\n\n<think>hm</think>\n\nEnd &lt; &amp;",
    "generics": "Use List<int> or Map<String, List<T>> and vector<T>; a < b > c. `List<int>` too.",
    "formulas": "With \\(x^2\\) and $\\frac{a}{b}$ it costs $0.02, not $5 or $HOME.\n\n\\[\nE = mc^2\n\\]\n\n"
    "$$\\sum_{i=1}^n i = \\frac{n(n+1)}{2}$$\nand\n$$\n\\foo{x}\n$$\ninline \\[ a \\leq b \\] end \\( open",
    "open-formula": "So:\n\\[\n- a\n- b\n\nnot closed\n\n$$\n= 1\n+ 2\n$$.\n\n$$ unclosed\n\n```\n$x^2$\n```",
    "newlines": "a\nb\nc  \nd\\\ne\n\n\n\nf\n   g\n\th",
    "backslashes": "C:\\Users\\new\\_x and \\\\server\\share, \\* not bold \\*, \\d+\\.\\w \\$5 \\# \\- end\\",
    "long-lines": "x" * 250 + "\n\n" + "word " * 60 + "\n\n```\n" + "y" * 130 + "\n" + "短" * 70 + "\n```",
    "quotes": "> one\n> two\nlazy\n>\n> - item\n>   > deep\n>\n> ```\n> code\n> ```\n\nafter\n> last",
    "links": "[text](https://a.b/c) <https://x.y> https://bare.url [same](same) ![pic](p.png) [ref][1]\n\n"
    "[1]: https://late.example\n[^1]: a footnote\n\nSee[^1]. [a](javascript:x) [b](<u v> \"t\")",
    "chinese": "# 标题\n\n这是一个很长的段落，包含**“强调”**文字和`代码`，用来测试换行。标点符号不应出现在行首！"
    "（括号）也是。\n\n1. 第一，**重点：**内容\n2. 第二。中英文mixed文字together\n\n> 引用",
    "emoji": "Done ✅ and 🎉 party 👩 **👍🏽** e\u0301 café\n\n- 🚀 launch\n- ⚠ warn",
    "rules": "a\n\n---\n\nb\n***\nc\n\n- - -\n- x\n\n___",
    "emphasis": "***both*** **a*b*c** _x_ snake_case_name 2*3*4 ** no ** *a **b** c* ~~s~~ ~one~ __u__",
    "deep": "- a\n  1. b\n     - c\n       1. d\n          - e with several words to wrap\n            > q\n\n"
    "            ```py\n            def f(): pass\n            ```",
    "tabs": "-\ttab item\n\n\tindented\n\n1.\tone\n\n```\n\tx\ty\n```",
}  # fmt: skip  # a table of texts
