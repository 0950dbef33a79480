"""What chat models answer when they are asked for `double`, in many manners: all of them are right, once the program is
found in them. Also answers in which `evalplus.sanitize` loses something that the function needs."""

from __future__ import annotations

from collections.abc import Mapping

WHOLE: Mapping[str, str] = {
    "plain": "def double(x):\n    return x + x\n",
    "prose around": ("Certainly!\n\n```python\ndef double(x):\n    return x + x\n```\n\nThis adds `x` to itself."),
    "language py": "```py\ndef double(x):\n    return x + x\n```",
    "language Python": "```Python\ndef double(x):\n    return x + x\n```",
    "language python3": "```python3\ndef double(x):\n    return x + x\n```\n",
    "tildes": "~~~python\ndef double(x):\n    return x + x\n~~~",
    "unclosed": "Here you go:\n```python\ndef double(x):\n    return x + x",
    "no opening": "def double(x):\n    return x + x\n```\nThis doubles.",
    "prompt repeated": (
        '### Instruction:\nComplete it:\n\ndef double(x):\n    """Twice x."""\n\n### Response:\n```python\n'
        'def double(x):\n    """Twice x."""\n    return x + x\n```'
    ),
    "script": (
        'import sys\n\ndef double(x):\n    return x + x\n\nif __name__ == "__main__":\n'
        "    print(double(int(sys.argv[1])))\n"
    ),
    "asks for input": ("```python\ndef double(x):\n    return x + x\n\nn = int(input())\nprint(double(n))\n```"),
    "wrong tests behind": ("```python\ndef double(x):\n    return x + x\n\nassert double(1) == 3\n```"),
    "doctest behind": (
        "```python\ndef double(x):\n    return x + x\n```\nUsage:\n```\n>>> double(2)\n4\n>>> double(3)\n6\n```"
    ),
    "doctest inside": ('```python\ndef double(x):\n    """\n    >>> double(2)\n    4\n    """\n    return x + x\n```'),
    "windows": ("Sure:\r\n```python\r\ndef double(x):\r\n    y = x\r\n\r\n    return x + y\r\n```\r\nDone.\r\n"),
    "tabs": ("```python\ndef double(x):\n\tif x:\n\t\treturn x + x\n\treturn x\n```"),
    "tags": ("[PYTHON]\ndef double(x):\n    return x + x\n[/PYTHON]\n[TESTS]\nassert double(1) == 2\n[/TESTS]"),
    "thought first": (
        "<think>\nLet x be 2, then x + x\nis 4.\n</think>\n```python\ndef double(x):\n    return x + x\n```"
    ),
    "lambda": "```python\ndouble = lambda x: x + x\n```",
    "helper": ("```python\ndef add(x, y):\n    return x + y\n\ndef double(x):\n    return add(x, x)\n```"),
    "constant": "```python\nFACTOR = 2\n\ndef double(x):\n    return x * FACTOR\n```",
    "two versions": (
        "```python\ndef double(x):\n    return x + x\n```\nOr:\n```python\ndef double(x):\n    return 2 * x\n```"
    ),
    "shell first": (
        "Install nothing:\n```bash\npip install numpy\n```\nThen:\n```python\ndef double(x):\n    return x + x\n```"
    ),
    "emphasis": (
        "**Solution**\n\n1. Add x to x.\n2. Return it.\n\n```python\ndef double(x):\n    return x + x\n```\n\n- O(1)"
    ),
    "list": ("1. First:\n\n   ```python\n   def double(x):\n       return x + x\n   ```\n\n2. Done."),
}
LOSING: Mapping[str, str] = {
    "fence on the last line": "```python\ndef double(x):\n    return x + x```",
    "fence on the last line, prose": (
        "Sure.\n```python\ndef double(x):\n    y = x + x\n    return y``` \nThis doubles x."
    ),
    "fence on the first line": "```python def double(x):\n    return x + x\n```\nThis doubles x.",
    "decorated": (
        "```python\nfrom functools import lru_cache\n\n@lru_cache(maxsize=None)\ndef double(x):\n    return x + x\n```"
    ),
    "decorator of its own": (
        "```python\nimport functools\n\ndef same(f):\n    @functools.wraps(f)\n    def inner(*a):\n"
        "        return f(*a)\n    return inner\n\n@same\ndef double(x):\n    return x + x\n\n"
        "print(double(2))\n```"
    ),
    "decorated helper": (
        "```python\nfrom functools import cache\n\n@cache\ndef add(x, y):\n    return x + y\n\n"
        "def double(x):\n    return add(x, x)\n```"
    ),
    "dataclass": (
        "```python\nfrom dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Pair:\n"
        "    x: object\n    y: object\n\ndef double(x):\n    pair = Pair(x, x)\n"
        "    return pair.x + pair.y\n```"
    ),
    "helper without a return": (
        "```python\ndef put(out, x):\n    out.append(x + x)\n\ndef double(x):\n    out = []\n"
        "    put(out, x)\n    return out[0]\n```"
    ),
    "helper in another block": (
        "First a helper:\n```python\ndef add(x, y):\n    return x + y\n```\nThen:\n```python\n"
        "def double(x):\n    return add(x, x)\n\nprint(double(1))\n```\n"
    ),
    "helper in a later block": (
        "```python\ndef double(x):\n    return add(x, x)\n```\nwhere\n```python\ndef add(x, y):\n"
        "    return x + y\n```\n"
    ),
    "import in another block": (
        "You need this import:\n```python\nimport operator\n```\nNow the function:\n```python\n"
        "def double(x):\n    return operator.add(x, x)\n```"
    ),
    "import in a later block": (
        "```python\n@cache\ndef double(x):\n    return x + x\n```\nDon't forget:\n```python\n"
        "from functools import cache\n```"
    ),
    "class in another block": (
        "~~~python\nclass Twice:\n    def __init__(self, x):\n        self.x = x\n\n    def get(self):\n"
        "        return self.x * 2\n~~~\nand\n~~~python\ndef double(x):\n    return Twice(x).get()\n~~~"
    ),
    "optional import": (
        "```python\ntry:\n    from numpy import add\nexcept ImportError:\n    from operator import add\n\n"
        "def double(x):\n    return x + x if isinstance(x, (int, str)) else add(x, x)\n```"
    ),
    "conditional helper": (
        "```python\nimport sys\n\nif sys.version_info >= (3, 0):\n    def add(x, y):\n"
        "        return x + y\nelse:\n    add = None\n\ndef double(x):\n    return add(x, x)\n```"
    ),
    "two names at once": ("```python\none, two = 1, 2\n\ndef double(x):\n    return x * two * one\n```"),
    "chained assignment": ("```python\na = factor = 2\n\ndef double(x):\n    return factor * x\n```"),
    "body and prints": ("    return x + x\n\nprint(double(2))\nprint(double(3))\nprint(double(4))\n"),
    "body and prose": ("    y = x\n    return x + y\n\nThis function adds x to itself\nand returns the sum."),
    "body at the margin and prose": "y = x\nreturn x + y\n\nThis function adds x to itself.",
    "body of which the prompt has the indentation": (
        "y = x\n    if y:\n        return x + y\n    return x\n\nIt adds x to itself."
    ),
    "body in a block": ("Here is the missing part:\n```python\n    y = x\n    return x + y\n```\nIt adds x to itself."),
    "body with tabs": "\ty = x\n\tif y:\n\t\treturn x + y\n\treturn x\n\nThat is all.",
    "windows and tests longer": (
        "Sure:\r\n```python\r\ndef double(x):\r\n    return x + x\r\n```\r\nTests:\r\n```python\r\n"
        "assert double(1) == 2\r\nassert double(1) == 2\r\nassert double(1) == 2\r\n"
        "assert double(1) == 2\r\nassert double(1) == 2\r\nassert double(1) == 2\r\n```\r\n"
    ),
    "tests longer, in a list": (
        "1. The function:\n    ```python\n    def double(x):\n        return x + x\n    ```\n2. Tests:\n"
        "    ```python\n    assert double(1) == 2\n    assert double(1) == 2\n    assert double(1) == 2\n"
        "    assert double(1) == 2\n    assert double(1) == 2\n    assert double(1) == 2\n    ```\n"
    ),
    "quoted": "> Here:\n> ```python\n> def double(x):\n>     return x + x\n> ```\n",
    "end of turn on the last line": "def double(x):\n    return x + x<|im_end|>",
    "end of text on the last line": "```python\ndef double(x):\n    y = x\n    return y + x</s>\n",
    "tags around": "<pre><code>def double(x):\n    y = x\n    return y + x</code></pre>",
    "import without a block": (
        "Use this:\nfrom functools import cache\n\nThen:\n```python\n@cache\ndef double(x):\n    return x + x\n```"
    ),
    "import in a context": (
        "```python\nimport contextlib\nwith contextlib.suppress(ImportError):\n    import operator\n"
        "def double(x):\n    return operator.add(x, x)\n```"
    ),
    "stub before the block": 'def double(x):\n    """Twice x."""\n```python\n    return x + x\n```',
    "fence on the last of two returns": (
        "```python\ndef double(x):\n    if not x:\n        return x\n    return x + x```\nThis doubles x."
    ),
    "end of text on the last of two returns": (
        "import math\ndef double(x):\n    if not x:\n        return x\n    return x + x<|endoftext|>"
    ),
}
