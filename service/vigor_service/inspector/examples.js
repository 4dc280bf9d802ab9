// Examples that can be scored without typing. Completions are in the order of their ranks by the embedded model.

export const EXAMPLES = [
  {
    name: "Arithmetic",
    prompt: "What is 3 + 4?",
    completions: ["3 + 4 = 7.", "The answer is 7.", "The answer is 8."],
  },
  {
    name: "A capital",
    prompt: "What is the capital of France?",
    completions: [
      "The capital of France is Paris.",
      "The capital of France is Paris. The capital of France is Paris. The capital of France is Paris.",
      "Paris, which lies on the Seine.",
      "The capital of France is Marseille.",
    ],
  },
  {
    name: "A function",
    prompt: "Write a Python function that doubles a number.",
    completions: [
      "def double(x):\n    return x * 2",
      "def double(x):\n    return x",
      "def double(x):\n    return x / 2",
    ],
  },
];
