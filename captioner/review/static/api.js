// Requests to the server.

/** An answer other than success; `status` 0 is no answer at all. */
export class Refused extends Error {
  constructor(status, answer) {
    super(answer.error ?? `the server answered ${status}`);
    this.status = status;
    this.answer = answer;
  }
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused(0, { error: "the server does not answer" });
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer);
  return answer;
}

export const get = (path, parameters = {}) => ask(`${path}?${new URLSearchParams(parameters)}`, {});

export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const thumbnailUrl = (card) => `/thumbnails/${card.id}?v=${card.stamp}`;
export const photoUrl = (card) => `/photos/${card.id}?v=${card.stamp}`;
