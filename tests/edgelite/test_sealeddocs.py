"""Secrets in the journal: sealed whole, read back, those of earlier versions sealed at start."""

import os

import pytest

from edgelite.desired import DOCUMENT, Desired, encode_document, version_of
from edgelite.journal import Journal
from edgelite.port import Files
from edgelite.runtimes.base import RuntimeFailure
from edgelite.sealeddocs import MARK, SEALED, SealedDocuments
from edgelite.vault import Vault

PLANTED = b"planted-c41d77aa-value"
BODY = b'{"kind":"Secret","data":{"key":"' + PLANTED + b'"}}'
KEY, POD = SEALED + "default/s", DOCUMENT + "pod/default/p/1"


class Node:
    """A journal on a disk, and the vault of one identity."""

    def __init__(self, path, secret=b"s" * 32):
        self.path = str(path / "journal")
        self.secret = secret
        self.stored = None
        self.readable = True
        self.open()

    def open(self):
        self.journal = Journal(Files(), self.path)
        self.opened = None
        self.documents = SealedDocuments(self.journal, self.vault)

    def vault(self):
        if not self.readable:
            raise RuntimeFailure("NoVault", "identity.pem cannot be read")
        if self.opened is None:
            self.opened = Vault(self.stored, [self.secret], os.urandom)
            self.stored = self.opened.record([self.secret])
        return self.opened

    def write(self, sealed=True):
        writes = [(KEY, encode_document(version_of(BODY), BODY)), (POD, encode_document("1" * 32, b"{}"))]
        self.journal.write(self.documents.sealed(writes) if sealed else writes)
        self.journal.sync()

    def restart(self):
        self.journal.close()
        self.open()

    def disk(self):
        with open(self.path, "rb") as file:
            return file.read()


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    made.journal.close()


def test_neither_a_secret_nor_its_version_is_on_the_disk_and_both_are_back_after_a_restart(node):
    node.write()
    assert PLANTED not in node.disk()
    assert version_of(BODY).encode() not in node.disk(), "a hash of a short secret can be guessed"
    assert b"1" * 32 in node.disk(), "the pod is in clear"
    node.restart()
    desired = Desired()
    assert dict(desired.load(node.documents.load()))["secret/default/s"] == BODY
    assert desired.versions["secret/default/s"] == version_of(BODY)
    assert node.documents.get(KEY) == encode_document(version_of(BODY), BODY)
    assert node.documents.get(POD) == encode_document("1" * 32, b"{}")


def test_a_journal_of_an_earlier_version_is_read_and_nothing_in_clear_is_left_in_its_file(node):
    node.write(sealed=False)
    assert PLANTED in node.disk()
    node.restart()
    assert dict(node.documents.load())[KEY] == encode_document(version_of(BODY), BODY)
    assert PLANTED not in node.disk()
    assert node.journal.get(KEY)[:1] == MARK
    node.restart()
    assert dict(node.documents.load())[KEY] == encode_document(version_of(BODY), BODY)


def test_another_identity_forgets_what_it_cannot_read(node):
    node.write()
    node.secret, node.stored = b"t" * 32, None
    node.restart()
    assert [key for key, _ in node.documents.load()] == [POD]
    assert node.documents.lost == 1
    assert node.journal.get(KEY) is None


def test_while_the_nodes_key_cannot_be_read_its_secrets_count_as_absent_and_are_kept(node):
    node.write()
    node.restart()
    node.readable = False
    assert [key for key, _ in node.documents.load()] == [POD]
    assert (node.documents.unread, node.documents.lost) == (1, 0)
    assert node.documents.get(KEY) is None
    with pytest.raises(RuntimeFailure):
        node.documents.sealed([(KEY, b"{}\n")])
    node.readable = True
    node.restart()
    assert [key for key, _ in node.documents.load()] == [POD, KEY]


def test_a_secret_that_was_put_under_another_name_is_not_read(node):
    node.write()
    node.journal.put(SEALED + "default/t", node.journal.get(KEY))
    assert [key for key, _ in node.documents.load()] == [POD, KEY]


def test_a_full_disk_leaves_an_earlier_journal_as_it_is_and_says_so(node, monkeypatch):
    node.write(sealed=False)
    node.restart()
    monkeypatch.setattr(
        Files, "create", lambda self, path: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    assert dict(node.documents.load())[KEY] == encode_document(version_of(BODY), BODY)
    assert "No space left" in node.documents.trouble
    monkeypatch.undo()
    node.journal.sync()
    assert PLANTED not in node.disk()
