"""The afternoon script: what one writes when the job is "put our transactions into the vector store" and no more.

``python -m benchmarks.afternoon URI SOURCE TARGET RESULT.json``. Nothing here is clever, nothing slow on purpose.
"""

import json
import sys
from datetime import UTC, datetime

from pymongo import MongoClient, ReplaceOne

from benchmarks.zero_latency import Embedder

EMBED_BATCH = 100
WRITE_BATCH = 1_000


def describe(tx):
    """Return a text for a transaction."""
    token = tx.get("token_symbol") or tx.get("token_name") or ""
    action = tx.get("method_name") or tx.get("tx_type") or "Transaction"
    text = f"{action} of {tx.get('value_eth', '0')} {token} on {tx.get('chain', 'unknown chain')}"
    if tx.get("block_time"):
        text += f" on {tx['block_time']:%d %B %Y at %H:%M}"
    if tx.get("from_address"):
        text += f" from {tx['from_address']}"
    if tx.get("to_address"):
        text += f" to {tx['to_address']}"
    if tx.get("status"):
        text += f", status {tx['status']}"
    return text


def make_document(tx, text, embedding, owners):
    """Return the document to store."""
    team, site = owners[tx["contractId"]]
    now = datetime.now(UTC)
    return {
        "documentId": f"transaction:{tx['contractId']}:{tx['tx_hash']}:0",
        "sourceType": "transaction",
        "sourceId": tx["_id"],
        "teamId": team,
        "siteId": site,
        "embedding": embedding,
        "content": text,
        "source": f"transaction:{tx['_id']}",
        "summary": text[:200],
        "metadata": {
            "timeframe": {"start": tx.get("block_time"), "end": tx.get("block_time")},
            "dataType": "transaction",
            "tags": [tag for tag in (tx.get("chain"), tx.get("status"), tx.get("method_name")) if tag],
            "chainId": tx.get("chain"),
            "contractAddress": tx.get("contract_address"),
            "importance": 5,
            "aggregationLevel": "raw",
            "confidence": 1,
        },
        "version": 1,
        "status": "active",
        "createdAt": now,
        "updatedAt": now,
    }


def load_owners(db):
    """Return contractId -> (team, the site of the team's first website)."""
    sites = {site["_id"]: site["siteId"] for site in db.websites.find()}
    teams = {
        team["_id"]: next((sites[one] for one in team.get("websites", []) if one in sites), "")
        for team in db.teams.find()
    }
    return {
        contract["contractId"]: (contract.get("team"), teams.get(contract.get("team"), ""))
        for contract in db.smartcontracts.find()
    }


def main():
    """Fill the target with all transactions of the source, whatever it holds."""
    uri, source, target, result = sys.argv[1:]
    client = MongoClient(uri)
    db, vectors = client[source], client[target].vectordocuments
    embedder = Embedder()
    owners = load_owners(db)
    transactions = list(db.transactions.find())
    for start in range(0, len(transactions), WRITE_BATCH):
        some = [tx for tx in transactions[start : start + WRITE_BATCH] if tx["contractId"] in owners]
        texts = [describe(tx) for tx in some]
        embeddings = []
        for first in range(0, len(texts), EMBED_BATCH):
            embeddings += embedder.embed_as_lists(texts[first : first + EMBED_BATCH])
        documents = [
            make_document(tx, text, embedding, owners)
            for tx, text, embedding in zip(some, texts, embeddings, strict=True)
        ]
        vectors.bulk_write([ReplaceOne({"documentId": doc["documentId"]}, doc, upsert=True) for doc in documents])
    with open(result, "w") as file:
        json.dump({"rows": len(transactions), "texts": embedder.texts, "embedder_cpu_s": embedder.cpu_s}, file)


if __name__ == "__main__":
    main()
