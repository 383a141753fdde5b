// The API of the server that this page came from, asked with the reader's token.

const KEY = "hilora-token";

export class Refused extends Error {
  constructor(status, error, after) {
    super(error?.message ?? `The server answered ${status}.`);
    this.status = status;
    this.code = error?.code ?? "";
    this.after = after;
  }
}

export const setToken = (token) => (token ? sessionStorage.setItem(KEY, token) : sessionStorage.removeItem(KEY));
export const hasToken = () => sessionStorage.getItem(KEY) !== null;

function headers(more = {}) {
  const token = sessionStorage.getItem(KEY);
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

async function refusal(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // not ours: a proxy's page, say
  }
  return new Refused(response.status, body.error, response.headers.get("Retry-After"));
}

export async function call(path, { method = "GET", body, signal } = {}) {
  const asked = { method, signal, headers: headers(body ? { "Content-Type": "application/json" } : {}) };
  if (body) asked.body = JSON.stringify(body);
  const response = await fetch(`v1/${path}`, asked);
  if (!response.ok) throw await refusal(response);
  return response.json();
}

// Chunks of a streamed answer.
export async function* stream(path, body, signal) {
  const response = await fetch(`v1/${path}`, {
    method: "POST",
    signal,
    headers: headers({ "Content-Type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw await refusal(response);
  let left = "";
  let whole = false;
  const text = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await text.read();
    if (done && whole) return;
    if (done) throw new Refused(0, { message: "The answer broke off: the connection has ended." });
    const events = (left + value).split("\n\n");
    left = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (!data.length) continue; // a comment: the server lives
      whole = data[0] === "[DONE]";
      if (whole) continue;
      const chunk = JSON.parse(data.join("\n"));
      if (lines.includes("event: error")) throw new Refused(0, chunk.error);
      yield chunk;
    }
  }
}

// A form with files; `progress` gets the share that is sent. fetch does not tell it.
export function send(method, path, form, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, `v1/${path}`);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Refused(0, { message: "The upload broke off: the connection has ended." }));
    request.onload = () => {
      if (request.status < 300) resolve(request.response);
      else reject(new Refused(request.status, request.response?.error));
    };
    request.send(form);
  });
}
