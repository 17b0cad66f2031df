// Asks the retrieval service from JavaScript: Node 18 or newer, or a bundler; nothing to install.
//
//   RAG_URL=http://127.0.0.1:8600 RAG_TOKEN=... node docs/retrieval.mjs SITE_ID "failed swaps in March"
//   ... node docs/retrieval.mjs SITE_ID --add "Refunds are paid within 14 days."
//
// The token is your application's own for the signed-in user. It names the team; keep it on your server.

const COME_AGAIN = new Set([429, 503]);
const LONGEST_WAIT_S = 30;

/** A client of one team. `ask` resolves to the answer's `data`, and rejects with an Error that has `status`. */
export function ragClient(baseUrl, token, { retries = 3, timeoutMs = 40_000 } = {}) {
  async function send(path, body, attempt = 0) {
    const response = await fetch(new URL(path, baseUrl), {
      method: "POST",
      headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMs),
    });
    if (COME_AGAIN.has(response.status) && attempt < retries) {
      const seconds = Number(response.headers.get("Retry-After")) || 2 ** attempt;
      await new Promise((wake) => setTimeout(wake, Math.min(seconds, LONGEST_WAIT_S) * 1000));
      return send(path, body, attempt + 1);
    }
    const answer = await response.json().catch(() => ({ error: `no JSON, but HTTP ${response.status}` }));
    if (!response.ok || !answer.success) {
      throw Object.assign(new Error(answer.error ?? "no reason given"), { status: response.status });
    }
    return { ...answer.data, requestId: response.headers.get("X-Request-ID") };
  }

  return {
    retrieve: (query, siteId, more = {}) => send("/api/rag/retrieve", { query, siteId, ...more }),
    generate: (query, siteId, more = {}) => send("/api/rag/generate", { query, siteId, ...more }),
    /** Figures, charts and tables; `more` may have `timeframe`. */
    overview: (query, siteId, more = {}) => send("/api/ai/query", { query, siteId, ...more }),
    /** `labels` are source, type and category; editors and admins of the team may add. */
    addDocument: (text, siteId, labels = {}) => send("/api/rag/documents", { text, siteId, metadata: labels }),
    rate: (requestId, siteId, rating, comment = "") =>
      send("/api/rag/feedback", { requestId, siteId, rating, comment }),
  };
}

if (process.argv[1] && import.meta.url.endsWith(process.argv[1].split("/").pop())) {
  const [siteId, query, text] = process.argv.slice(2);
  const rag = ragClient(process.env.RAG_URL ?? "http://127.0.0.1:8600", process.env.RAG_TOKEN ?? "");
  try {
    if (query === "--add") {
      console.log(JSON.stringify(await rag.addDocument(text, siteId, { type: "note" })));
    } else {
      const found = await rag.retrieve(query, siteId, { limit: 3 });
      const answer = await rag.generate(query, siteId).catch(() => null);
      console.log(JSON.stringify({ found, answer }));
    }
  } catch (error) {
    console.error(`${error.status ?? ""} ${error.message}`.trim());
    process.exitCode = 1;
  }
}
