"use strict";
// The list of groups: only the visible ones are in the document. All text is set as text, never as HTML.

const GROUP_PIXELS = 334;
const EXTRA_GROUPS = 2;  // kept above and below the visible groups
const ALL = "";

const KINDS = {
  all: () => true,
  best: ({ isBest }) => isBest,
  worst: ({ isWorst }) => isWorst,
  disagree: ({ isGood, isBad, correct }) => (isGood && correct === 0) || (isBad && correct === 1),
  "good-wrong": ({ isGood, correct }) => isGood && correct === 0,
  "bad-right": ({ isBad, correct }) => isBad && correct === 1,
  truncated: ({ ended }) => !ended,
};

/** The groups of all runs, each with its completions from best to worst. */
function groupsOf(runs) {
  return runs.flatMap((run, runIndex) => {
    const { groups, prompts, columns, rewards } = run.completions;
    return groups.map(([first, prompt, step], number) => {
      const end = number + 1 < groups.length ? groups[number + 1][0] : columns.text.length;
      const rows = Array.from({ length: end - first }, (_, offset) => completionAt(columns, rewards, first + offset));
      return { run: runIndex, runName: run.name, step, prompt: prompts[prompt], completions: placed(rows) };
    });
  });
}

function completionAt(columns, rewards, row) {
  const completion = { rewards: Object.entries(rewards).map(([name, values]) => [name, values[row]]) };
  for (const [name, values] of Object.entries(columns)) completion[name] = values[row];
  return completion;
}

/** Sorted by rank. The better half is "good", the worse half "bad"; the middle of an odd group is neither. */
function placed(completions) {
  const sorted = completions.sort((a, b) => a.rank - b.rank);
  const middle = (sorted.length + 1) / 2;
  const [best, worst] = [sorted[0].rank, sorted[sorted.length - 1].rank];
  for (const completion of sorted) {
    completion.isGood = completion.rank < middle;
    completion.isBad = completion.rank > middle;
    completion.isBest = completion.rank === best && best < middle;
    completion.isWorst = completion.rank === worst && worst > middle;
  }
  return sorted;
}

/** The groups that have completions to show, with these alone. */
function filtered(groups, { run, step, kind, text }) {
  const wanted = text.toLowerCase();
  const found = [];
  for (const group of groups) {
    if ((run !== ALL && group.run !== Number(run)) || (step !== ALL && group.step !== Number(step))) continue;
    const inPrompt = group.prompt.toLowerCase().includes(wanted);
    const shown = group.completions.filter(
      (completion) => KINDS[kind](completion) && (inPrompt || completion.text.toLowerCase().includes(wanted)),
    );
    if (shown.length) found.push({ ...group, shown });
  }
  return found;
}

function element(tag, text = "", name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  return made;
}

function groupElement(group, position, hasSeveralRuns) {
  const made = element("article", "", "group");
  made.style.transform = `translateY(${position * GROUP_PIXELS}px)`;
  made.append(promptCard(group, hasSeveralRuns), ...group.shown.map(completionCard));
  return made;
}

function promptCard(group, hasSeveralRuns) {
  const card = element("div", "", "card prompt");
  const header = element("header");
  header.append(element("b", `${hasSeveralRuns ? `${group.runName}, ` : ""}step ${group.step}`));
  card.append(header, element("pre", group.prompt));
  return card;
}

function completionCard(completion) {
  const disagrees = KINDS.disagree(completion);
  const card = element("div", "", disagrees ? "card disagrees" : "card");
  const header = element("header");
  const title = element("b", `rank ${completion.rank}`);
  title.append(...marks(completion.correct, !completion.ended));
  header.append(title, ...facts(completion).map((fact) => element("span", fact, "soft")));
  card.append(header, element("pre", completion.text));
  return card;
}

/** Right or wrong, where that is known, and whether the completion was cut off. */
function marks(correct, isTruncated) {
  const label = correct === null ? [] : [element("span", correct ? "✓ right" : "✗ wrong", correct ? "right" : "wrong")];
  return isTruncated ? [...label, element("span", "truncated", "cut")] : label;
}

function facts({ norm, tokens, answer, rewards }) {
  return [
    norm === null ? "no norm" : `norm ${short(norm)}`,
    `${tokens} tokens`,
    ...(answer === null ? [] : [`answer ${answer}`]),
    ...rewards.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${short(value)}`),
  ];
}

/** Shows the groups in view of a scrolling element. */
class GroupList {
  constructor(container, hasSeveralRuns) {
    this.container = container;
    this.spacer = container.querySelector(".spacer");
    this.hasSeveralRuns = hasSeveralRuns;
    this.groups = [];
    this.inView = new Map();
    container.addEventListener("scroll", () => this.update(), { passive: true });
    new ResizeObserver(() => this.update()).observe(container);
  }

  show(groups) {
    this.groups = groups;
    this.spacer.style.height = `${groups.length * GROUP_PIXELS}px`;
    for (const shown of this.inView.values()) shown.remove();
    this.inView.clear();
    this.container.scrollTop = 0;
    this.update();
  }

  update() {
    if (matchMedia("print").matches) return;  // in print the list grows with its content
    const { scrollTop, clientHeight } = this.container;
    const first = Math.max(0, Math.floor(scrollTop / GROUP_PIXELS) - EXTRA_GROUPS);
    const last = Math.min(this.groups.length, Math.ceil((scrollTop + clientHeight) / GROUP_PIXELS) + EXTRA_GROUPS);
    for (const [position, shown] of this.inView) {
      if (position < first || position >= last) {
        shown.remove();
        this.inView.delete(position);
      }
    }
    for (let position = first; position < last; position++) {
      if (!this.inView.has(position)) {
        const made = groupElement(this.groups[position], position, this.hasSeveralRuns);
        this.inView.set(position, made);
        this.container.append(made);
      }
    }
  }
}
