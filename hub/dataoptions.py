"""The options of `cloudhub key`, `backup`, `restore` and `store`: what is done to a fleet's data, not through its API."""

from typing import Any

from hub.sharedoptions import add_etcd, add_result, add_yes
from security.algorithms import ALGORITHMS


def add_data(commands: Any) -> None:
    _key(commands)
    _backup(commands)
    _restore(commands)
    _store(commands)


def _key(commands: Any) -> None:
    key = commands.add_parser(
        "key",
        help="the replicas' key file, and keys in tokens",
        description="The replicas' key file, and keys in tokens.",
    )
    actions = key.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = actions.add_parser(
        "create",
        help="makes a key file, or a key in a token",
        description="Makes a key file with 32 random bytes, mode 0600. The authority of a fleet with several replicas is "
        "sealed under it, and so are Secrets and join tokens: give the same file to every replica, and keep a copy, for "
        "without it they are lost. With a URI, makes a key pair in a PKCS #11 token instead, which never leaves it: for `cloudhub serve --ca-key URI`.",
    )
    create.add_argument(
        "file",
        metavar="FILE|URI",
        help="where; what exists is left alone. pkcs11:token=T;object=O?module-path=LIB&pin-source=FILE",
    )
    create.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        help="of a key in a token (default: ecdsa-p256)",
    )
    create.set_defaults(run="key_create")


def _backup(commands: Any) -> None:
    backup = commands.add_parser(
        "backup",
        help="saves a fleet and its authority in a file",
        description="Saves the whole fleet as it is at one moment, with its certificate authority, in a new file (0600). "
        "Hubs may run meanwhile. The authority's key, those that sign tokens of service accounts, and the key that Secrets and "
        "join tokens in the file are sealed with, are sealed under the key file; of a data directory without --key-file they "
        "are in clear: keep the file secret.",
    )
    backup.add_argument("file", metavar="FILE", help="where; an existing file is left alone")
    where = backup.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", metavar="DIR", help="the fleet in this hub's data directory")
    add_etcd(where, backup, "the fleet that replicas share there")
    backup.add_argument(
        "--key-file",
        metavar="FILE",
        help="seal the authority's key and that of Secrets under this file; with --etcd, where it is sealed: check that this is its key file "
        "(default: none)",
    )
    add_result(backup)
    backup.set_defaults(run="backup")


def _restore(commands: Any) -> None:
    restore = commands.add_parser(
        "restore",
        help="brings a fleet back from a backup",
        description="Fills an empty store from a backup and gives it the fleet's authority. Then start the hub on it: the "
        "nodes follow it without joining anew or being confirmed, since the restore raises the store's generation. They "
        "converge to what the backup holds, so workloads that are newer than it are removed. Never let another hub "
        "serve the same fleet. A restore that is cut off is not served; the same command goes on with it.",
    )
    restore.add_argument(
        "file", metavar="FILE", help="made by `cloudhub backup`; checked before anything is written"
    )
    where = restore.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", metavar="DIR", help="into this data directory, made where there is none")
    add_etcd(where, restore, "into this etcd, for replicas that share it")
    restore.add_argument(
        "--key-file",
        metavar="FILE",
        help="the key file that the authority is sealed under in the backup, or will be in etcd (required with --etcd and "
        "for a sealed backup)",
    )
    add_yes(restore)
    add_result(restore)
    restore.set_defaults(run="restore")


def _store(commands: Any) -> None:
    store = commands.add_parser(
        "store", help="moves a fleet to another store", description="Moves a fleet's store."
    )
    actions = store.add_subparsers(title="commands", metavar="COMMAND", required=True)
    copy = actions.add_parser(
        "copy",
        help="moves a fleet from a data directory to etcd",
        description="Moves the fleet of a stopped hub from its data directory to an empty etcd, authority included, and "
        "compares the two. The data directory keeps its data but is not served any more. Then start replicas with --etcd "
        "and --key-file: the nodes follow them where they can reach them at the addresses that they know. A copy that "
        "is cut off is not served; the same command goes on with it. To go back, take a backup of etcd and restore it into "
        "a new data directory.",
    )
    copy.add_argument(
        "--from-data-dir", metavar="DIR", required=True, help="of the hub, which has to be stopped"
    )
    add_etcd(copy, copy, "into this etcd", required=True)
    copy.add_argument(
        "--key-file",
        metavar="FILE",
        required=True,
        help="what the authority is sealed under, the same for all replicas; `cloudhub key create FILE` makes it",
    )
    add_yes(copy)
    add_result(copy)
    copy.set_defaults(run="store_copy")
    reencrypt = actions.add_parser(
        "reencrypt",
        help="seals Secrets and join tokens anew, with the newest key",
        description="Seals every Secret and join token under the newest data key: what an earlier version wrote in clear, and, "
        "once the key file has a new first line (or the key management service a new key), what is sealed under the key "
        "before. Replicas that share etcd go on meanwhile; a hub that is alone has to be stopped. A run that is cut off "
        "is begun again. Afterwards the old key can be taken away. To change keys: put the new one in the key file's "
        "second line, everywhere; then first, everywhere; then run this; then take the old one out.",
    )
    where = reencrypt.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", metavar="DIR", help="the fleet in this hub's data directory")
    add_etcd(where, reencrypt, "the fleet that replicas share there")
    reencrypt.add_argument(
        "--key-file",
        metavar="FILE",
        help="the hubs' key file (required with --etcd; default without: secrets.key in the data directory)",
    )
    reencrypt.add_argument(
        "--kms-socket", metavar="PATH", help="the hubs' key management service (default: none)"
    )
    reencrypt.add_argument(
        "--new-key",
        action="store_true",
        help="make a new data key in any case (default: only where another key is to wrap it)",
    )
    add_result(reencrypt)
    reencrypt.set_defaults(run="store_reencrypt")
