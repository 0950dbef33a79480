"""Little tasks of our own in the formats of published benchmarks."""

from __future__ import annotations

from typing import Any

HUMANEVAL_PRO: dict[str, Any] = {
    "id": 0,
    "raw_problem": 'def double(x: int) -> int:\n    """Twice x."""\n',
    "raw_solution": "    return 2 * x\n",
    "new_problem": "\n# Twice each number of a list.\ndef double_all(numbers: list[int]) -> list[int]:\n",
    "new_solution": "    return [double(number) for number in numbers]\n",
    "test_code": "assert double_all([1, 2]) == [2, 4]\nassert double_all([]) == []\n",
}
MBPP_PRO: dict[str, Any] = {
    "id": 7,
    "raw_problem": "# Write a function to halve a number.\ndef half(x):\n",
    "raw_solution": "    return x / 2\n",
    "new_problem": "# Write a function to halve two numbers.\ndef halves(x, y):\n",
    "new_solution": "    return half(x), half(y)\n",
    "test_code": (
        "import math\nassert halves(1, 2) == (0.5, 1.0)\nassert halves(math.pi, 1 + 1) == (math.pi / 2, 1.0)\n"
    ),
}
CRUXEVAL: dict[str, Any] = {
    "code": "def f(text, n):\n    return text[::-1] * n",
    "input": "'ab', 2",
    "output": "'baba'",
    "id": "sample_0",
}
LEETCODE: dict[str, Any] = {
    "task_id": "sum-of-tree",
    "problem_description": 'Sum of a tree\'s values plus k, "\\n" ignored.',
    "starter_code": "class Solution:\n    def treeSum(self, root: Optional[TreeNode], k: int) -> int:\n        ",
    "estimated_date": "2024-10-13",
    "prompt": (
        "import math\nfrom typing import *\n\nclass TreeNode:\n    def __init__(self, val):\n        self.val = val\n\n"
        "def tree_node(values):\n    return TreeNode(sum(values)) if values else None\n"
    ),
    "completion": (
        "class Solution:\n    def treeSum(self, root: Optional[TreeNode], k: int) -> int:\n"
        "        return root.val + k if root else -math.inf\n"
    ),
    "entry_point": "Solution().treeSum",
    "test": (
        "def check(candidate):\n"
        "    assert candidate(root = tree_node([1, 2]), k = 3) == 6\n"
        "    assert candidate(root = tree_node([]), k = 0) == -inf\n"
    ),
}
ALL_FORMATS = {"humaneval_pro": HUMANEVAL_PRO, "mbpp_pro": MBPP_PRO, "cruxeval": CRUXEVAL, "leetcode": LEETCODE}
