// Requests to the hub that served this page. A token is kept in this tab (sessionStorage) and goes out as a header: it is
// in no URL and in no cookie.

const TOKEN = 'cloudhub-token';

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Connection {
  get hasToken() {
    return sessionStorage.getItem(TOKEN) !== null;
  }

  signIn(token) {
    sessionStorage.setItem(TOKEN, token.trim());
  }

  signOut() {
    sessionStorage.removeItem(TOKEN);
  }

  // Throws Refused, and TypeError where the hub cannot be reached.
  async fetch(path, options = {}) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
    const response = await fetch(path, { ...options, headers, cache: 'no-store', redirect: 'error' });
    if (response.ok) return response;
    let message = `${response.status} ${response.statusText}`;
    try {
      message = (await response.json()).message ?? message;
    } catch {
      // It is no Status: a proxy between here and the hub has answered.
    }
    throw new Refused(response.status, String(message));
  }

  async get(path, headers = {}) {
    return (await this.fetch(path, { headers })).json();
  }

  // Calls `take` with each line of JSON until the stream ends. `signal` ends it.
  async lines(path, take, signal) {
    const response = await this.fetch(path, { signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines) if (line) take(JSON.parse(line));
    }
  }
}
