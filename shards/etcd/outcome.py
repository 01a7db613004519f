"""Transactions against etcd, and what became of those whose answer was lost.

A lost answer leaves a proposal that may be carried out now, later (a member thaws) or never. What is certain:

- Our puts stand, all at one revision after we began, and the compares exclude other writers: it was carried out.
- A transaction that changes a key that it compares can be carried out once only. So the same one may be sent again,
  and the answer to that decides; if the compares fail and no version since we began is ours, it was not carried out.

Anything else stays Ambiguous.
"""

import asyncio
import time
from collections.abc import Sequence

import grpc.aio

from shards.etcd.client import ATTEMPT_S, CALL_S, Client, NotTried, Uncertain
from shards.etcd.messages import key_value
from shards.etcd.proto import rpc_pb2 as pb
from shards.kv import Ambiguous, Compare, Delete, KeyValue, Put, TxnResult, Unavailable

VERSIONS_MAX = 16
"""Versions of one key that are searched for ours."""
READ_MAX = 100
"""Keys of one read; etcd bounds the operations of a transaction to 128."""
PAUSE_S = 0.05


async def carry_out(client: Client, compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> TxnResult:
    """Raises Unavailable (nothing was written), Ambiguous, and what `shards.etcd.client.refused` gives."""
    request = to_request(compares, ops)
    deadline = time.monotonic() + CALL_S
    began = client.head
    uncertain: Exception | None = None
    while True:
        left_s = deadline - time.monotonic()
        try:
            if left_s <= 0:
                raise TimeoutError(f"no answer within {CALL_S:.0f} s")
            async with asyncio.timeout(left_s):
                if uncertain is not None:
                    found = await _look(client, compares, ops, began)
                    if found is not None:
                        return found
                return to_result(await client.txn(request, max(0.1, min(ATTEMPT_S, left_s))))
        except Uncertain as failure:
            uncertain = failure
        except NotTried as failure:
            if time.monotonic() + PAUSE_S > deadline:
                raise _given_up(uncertain or failure, uncertain is not None) from failure
        except (Unavailable, TimeoutError) as failure:
            raise _given_up(uncertain or failure, uncertain is not None) from failure
        await asyncio.sleep(PAUSE_S)


def _given_up(reason: BaseException, ambiguous: bool) -> Unavailable | Ambiguous:
    if ambiguous:
        return Ambiguous(f"the transaction may or may not be carried out: {reason}; read before trying again")
    return Unavailable(
        f"etcd does not answer, nothing was written: {reason}; check the members and their quorum"
    )


async def _look(
    client: Client, compares: Sequence[Compare], ops: Sequence[Put | Delete], began: int
) -> TxnResult | None:
    """What the store shows of a transaction whose answer was lost; None: send it again. Raises Ambiguous."""
    if not ops:
        return None
    now, revision = await read_keys(client, [c.key for c in compares] + [op.key for op in ops])
    if compares and (at := _standing(ops, now, began)):
        return TxnResult(True, at)
    single = _once(compares, ops)
    if not single:
        raise Ambiguous("the transaction may be carried out, now or later: read before trying again")
    if all(_revision(now[c.key]) == c.mod_revision for c in compares):
        return None
    verdicts = [await _ours(client, op, compared, now[op.key]) for op, compared in single]
    if at := max((v for v in verdicts if v), default=0):
        return TxnResult(True, at)
    if 0 not in verdicts:
        raise Ambiguous(
            f"{single[0][0].key} changed, by this transaction or by another: read before trying again"
        )
    return TxnResult(False, revision, tuple(now[c.key] for c in compares))


def _standing(ops: Sequence[Put | Delete], now: "dict[str, KeyValue | None]", began: int) -> int:
    """The one revision after `began` at which everything that we write stands; 0 when it does not."""
    revisions = set()
    for op in ops:
        kv = now[op.key]
        if isinstance(op, Put):
            if kv is None or (kv.value, kv.lease) != (op.value, op.lease):
                return 0
            revisions.add(kv.mod_revision)
        elif kv is not None:
            return 0
    return revisions.pop() if len(revisions) == 1 and min(revisions) > began else 0


def _once(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> list[tuple[Put | Delete, int]]:
    """The operations that make a compare of their own key fail for ever after, each with the revision compared."""
    compared = {c.key: c.mod_revision for c in compares}
    return [
        (op, compared[op.key])
        for op in ops
        if op.key in compared and (isinstance(op, Put) or compared[op.key])
    ]


async def _ours(client: Client, op: Put | Delete, compared: int, kv: KeyValue | None) -> int | None:
    """Did `op` make the version that followed `compared`? Its revision, 0 when another did (or none), None: unknown."""
    if kv is None or (compared and kv.create_revision > compared):
        return None  # deleted meanwhile
    if kv.mod_revision == compared or isinstance(op, Delete):
        return 0
    try:
        if not compared:
            kv = await _at(client, op.key, kv.create_revision)
        for _ in range(VERSIONS_MAX):
            before = await _at(client, op.key, kv.mod_revision - 1) if compared and kv else None
            if kv and _revision(before) == compared:
                return kv.mod_revision if (kv.value, kv.lease) == (op.value, op.lease) else 0
            if before is None:
                return None
            kv = before
    except grpc.aio.AioRpcError as compacted:
        if compacted.code() is not grpc.StatusCode.OUT_OF_RANGE:
            raise
    return None


def _revision(kv: KeyValue | None) -> int:
    return kv.mod_revision if kv else 0


async def _at(client: Client, key: str, revision: int) -> KeyValue | None:
    return (await read_keys(client, [key], revision))[0][key]


async def read_keys(
    client: Client, keys: Sequence[str], revision: int = 0
) -> "tuple[dict[str, KeyValue | None], int]":
    """The keys in one state, of `revision` or the present one, which is returned with them. Reads at most 100 keys in
    one request, since etcd bounds the operations of one."""
    found: dict[str, KeyValue | None] = dict.fromkeys(keys)
    names = list(found)
    for i in range(0, len(names), READ_MAX):
        request = pb.TxnRequest(success=[_range(key, revision) for key in names[i : i + READ_MAX]])
        answer = await client.txn_read(request)
        revision = revision or answer.header.revision
        for key, response in zip(names[i : i + READ_MAX], answer.responses, strict=True):
            found[key] = _first(response)
    return found, revision


def to_request(compares: Sequence[Compare], ops: Sequence[Put | Delete]) -> pb.TxnRequest:
    """Compares by mod revision; when one fails, the compared keys are read in the same step."""
    return pb.TxnRequest(
        compare=[
            pb.Compare(
                result=pb.Compare.EQUAL,
                target=pb.Compare.MOD,
                key=c.key.encode(),
                mod_revision=c.mod_revision,
            )
            for c in compares
        ],
        success=[
            pb.RequestOp(request_put=pb.PutRequest(key=op.key.encode(), value=op.value, lease=op.lease))
            if isinstance(op, Put)
            else pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=op.key.encode()))
            for op in ops
        ],
        failure=[_range(c.key, 0) for c in compares],
    )


def to_result(answer: pb.TxnResponse) -> TxnResult:
    if answer.succeeded:
        return TxnResult(True, answer.header.revision)
    return TxnResult(False, answer.header.revision, tuple(_first(r) for r in answer.responses))


def _range(key: str, revision: int) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode(), revision=revision))


def _first(response: pb.ResponseOp) -> KeyValue | None:
    kvs = response.response_range.kvs
    return key_value(kvs[0]) if kvs else None
