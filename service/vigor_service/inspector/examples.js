// What can be scored without typing.

export const EXAMPLES = [
  {
    name: "Arithmetic",
    prompt: "What is 3 + 4?",
    completions: ["3 + 4 = 7.", "The answer is 8, I think.", "Bananas are yellow."],
  },
  {
    name: "A capital",
    prompt: "What is the capital of France?",
    completions: [
      "The capital of France is Paris.",
      "Paris, which lies on the Seine.",
      "The capital of France is Marseille.",
      "The capital of France is Paris. The capital of France is Paris. The capital of France is Paris.",
    ],
  },
  {
    name: "A function",
    prompt: "Write a Python function that doubles a number.",
    completions: [
      "def double(x):\n    return 2 * x",
      "def double(number):\n    \"\"\"Return twice the number.\"\"\"\n    return number + number",
      "def double(x):\n    return x ** 2",
    ],
  },
];
