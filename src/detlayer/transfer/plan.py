"""What a push will do to one repository, blob by blob, each with a reason: a pure function over facts.

    while questions := ask(wanted, facts): learn the answers
    plan(wanted, facts)

`ask` names only questions that cost less than they are expected to save; so a push that changes nothing asks one. What
earlier runs remembered counts only once the registry has confirmed a part of it. How a fact was learned, and how a plan
is carried out, is not known here. Carries out SPEC 11: what a tag names is complete at every moment, since blobs come
before manifests, manifests before indexes, and tags last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from detlayer.oci.documents import Document, Wanted
from detlayer.oci.ports import Proof
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest, parse_digest

# From here on a blob is worth a question before it is sent. Where an old image of the same tag is known, what it does
# not have is most likely new, and only a large blob is worth one.
ASK_FROM_BYTES = 1 << 20
ASK_NEW_FROM_BYTES = 16 << 20
TELLING_FROM_BYTES = 128  # smaller ones, such as empty layers and configs, are in images that share nothing else

_LAST_TAGS = frozenset(("latest", "stable", "main", "master", "edge", "nightly", "current"))

Action = Literal["present", "inferred", "mount", "upload", "foreign"]


class Facts(msgspec.Struct):
    """What this run knows of one repository, and how; and apart from that, what earlier runs remembered of it."""

    tags: dict[str, Descriptor | None] = {}
    """What each destination tag names now; None if nothing."""
    proofs: dict[Digest, Proof] = {}
    """Blobs and manifests that are there."""
    remembered: dict[Digest, Proof] = {}
    """Blobs and manifests that were there in earlier runs: no plan depends on them until one is confirmed."""
    absent: set[Digest] = set()
    """What was asked for in this run and is not there."""
    documents: dict[Digest, Document | None] = {}
    """Old manifests of the destination tags; None if one could not be had."""
    elsewhere: dict[Digest, RepositoryName] = {}
    """Repositories of the same registry that blobs can be mounted from."""
    guessed: set[Digest] = set()
    """Those of them of which it was only said that they may be there: a mount that fails is an upload."""
    begun: set[Digest] = set()
    """Blobs whose upload an earlier run began: they may have arrived."""

    def demote(self, digests: Iterable[Digest]) -> None:
        """Take back what proved wrong: these are not there, whatever was inferred."""
        for digest in digests:
            self.proofs.pop(digest, None)
            self.elsewhere.pop(digest, None)
            self.absent.add(digest)

    def settle(self, *, holds: bool) -> None:
        """Believe what is remembered, or drop it."""
        for digest, proof in self.remembered.items() if holds else ():
            if digest not in self.absent:
                self.proofs.setdefault(digest, proof)
        self.remembered.clear()


class Question(msgspec.Struct, frozen=True):
    """Something to ask the registry: what a tag names, whether it has a manifest or a blob, or what a manifest says.

    `free` allows no request: it is to be answered from memory, or not at all. `confirms` asks for something that is
    remembered: by the answer all that is remembered is believed, or dropped (`Facts.settle`).
    """

    about: Literal["tag", "manifest", "blob", "document"]
    target: str
    free: bool = False
    confirms: bool = False

    @property
    def digest(self) -> Digest:
        return parse_digest(self.target)


class BlobStep(msgspec.Struct, frozen=True):
    """What is done about a blob. `source` is where it is mounted from."""

    digest: Digest
    size_bytes: int
    media_type: str
    action: Action
    reason: str
    source: RepositoryName | None = None


class ManifestStep(msgspec.Struct, frozen=True):
    """What is done about a manifest or index by its digest."""

    digest: Digest
    size_bytes: int
    media_type: str
    action: Literal["present", "put"]
    reason: str


class TagStep(msgspec.Struct, frozen=True):
    """What is done about a tag. `seen` is what it named when the plan was made."""

    tag: str
    action: Literal["present", "put"]
    reason: str
    seen: Digest | None


class Plan(msgspec.Struct, frozen=True):
    """What a push to one repository does, in order: blobs, manifests by digest, tags.

    `asked` counts the requests that making the plan took.
    """

    name: RepositoryName
    root: Digest
    blobs: tuple[BlobStep, ...]
    manifests: tuple[ManifestStep, ...]
    tags: tuple[TagStep, ...]
    root_bytes: int
    asked: int = 0

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do."""
        return not any((*self.sends, *self.puts, *self.tag_puts))

    @property
    def is_repair(self) -> bool:
        """Whether it restores parts of an image that a tag names already."""
        return any(one.seen == self.root for one in self.tag_puts)

    @property
    def sends(self) -> tuple[BlobStep, ...]:
        return tuple(one for one in self.blobs if one.action in ("mount", "upload"))

    @property
    def puts(self) -> tuple[ManifestStep, ...]:
        return tuple(one for one in self.manifests if one.action == "put")

    @property
    def tag_puts(self) -> tuple[TagStep, ...]:
        return tuple(one for one in self.tags if one.action == "put")

    @property
    def requests(self) -> int:
        """How many requests carrying it out takes: a mount is one, an upload two (more in chunks)."""
        per_blob = sum(2 if one.action == "upload" else 1 for one in self.sends)
        return per_blob + len(self.puts) + len(self.tag_puts)

    @property
    def upload_bytes(self) -> int:
        """Bytes of blobs and documents that are sent."""
        blobs = sum(one.size_bytes for one in self.blobs if one.action == "upload")
        return blobs + sum(one.size_bytes for one in self.puts) + len(self.tag_puts) * self.root_bytes

    @property
    def all_bytes(self) -> int:
        """Bytes of the whole image, with documents."""
        blobs = sum(one.size_bytes for one in self.blobs)
        return blobs + sum(one.size_bytes for one in self.manifests) + self.root_bytes

    def to_document(self) -> dict[str, Any]:
        return {
            "repository": str(self.name),
            "root": str(self.root),
            "rootBytes": self.root_bytes,
            "asked": self.asked,
            "requests": self.requests,
            "uploadBytes": self.upload_bytes,
            "allBytes": self.all_bytes,
            "blobs": [
                {
                    "digest": str(one.digest),
                    "size": one.size_bytes,
                    "mediaType": one.media_type,
                    "action": one.action,
                    "reason": one.reason,
                    **({"from": str(one.source)} if one.source else {}),
                }
                for one in self.blobs
            ],
            "manifests": [
                {
                    "digest": str(one.digest),
                    "size": one.size_bytes,
                    "mediaType": one.media_type,
                    "action": one.action,
                    "reason": one.reason,
                }
                for one in self.manifests
            ],
            "tags": [
                {
                    "tag": one.tag,
                    "action": one.action,
                    "reason": one.reason,
                    **({"seen": str(one.seen)} if one.seen else {}),
                }
                for one in self.tags
            ],
        }


# -- questions


def ask(wanted: Wanted, tags: Sequence[str], facts: Facts, *, check: bool = False) -> tuple[Question, ...]:
    """Say what is worth asking next, all of it at once; nothing when a plan can be made.

    A push by the image's digest alone has that for its only tag. With `check` everything is asked for.
    """
    if unasked := [tag for tag in tags if tag not in facts.tags]:
        return tuple(Question("tag", tag) for tag in unasked)
    if check:
        return tuple(_about_everything(wanted, facts))
    facts = _concluded(wanted, facts)
    if wanted.root.digest in facts.proofs:
        return ()
    believed = _believe(wanted, facts)
    if wanted.root.digest in believed.proofs:
        return confirm(wanted, facts)
    old = [named for tag in tags if (named := facts.tags[tag]) is not None]
    if questions := tuple(_about_old(wanted, old, believed)):
        return questions
    if not old:
        # Nothing to go by. Is the image here under another name, or a part of it?
        if unknown := _unknown_document(wanted, (wanted.root,), believed):
            return unknown
        if unknown := _unknown_document(wanted, wanted.documents[:-1], believed):
            return unknown
    is_known = any(facts.documents.get(one.digest) is not None for one in old)
    return (*_about_blobs(wanted, is_known, believed), *confirm(wanted, facts))


def confirm(wanted: Wanted, facts: Facts) -> tuple[Question, ...]:
    """Ask for one thing of those that are remembered, if a plan would depend on any.

    The topmost layer of them: others may have brought the lower ones back since, with images on the same base.
    """
    facts = _concluded(wanted, facts)
    doubtful = _believe(wanted, facts).proofs.keys() - facts.proofs.keys()
    blobs = [blob for blob in _open(wanted, facts) if blob.digest in doubtful]
    if not blobs and not doubtful.intersection(one.digest for one in wanted.documents[:-1]):
        return ()
    if blobs := [blob for blob in blobs if blob.digest in facts.remembered]:
        telling = [blob for blob in blobs if blob.size_bytes >= TELLING_FROM_BYTES] or blobs
        return (Question("blob", str(telling[-1].digest), confirms=True),)
    documents = [one.digest for one in wanted.documents if one.digest in doubtful and one.digest in facts.remembered]
    return tuple(Question("manifest", str(digest), confirms=True) for digest in documents[-1:])


def _believe(wanted: Wanted, facts: Facts) -> Facts:
    """Return the facts as they are if everything that is remembered is still there."""
    return _concluded(wanted, msgspec.structs.replace(facts, proofs={**facts.remembered, **facts.proofs}))


def _about_everything(wanted: Wanted, facts: Facts) -> Iterator[Question]:
    """Ask for all that this run did not see; the root is what the tags name, or is put."""
    answered = facts.proofs.keys() | facts.absent
    documents = [one.digest for one in wanted.documents[:-1] if one.digest not in answered]
    blobs = [one.digest for one in wanted.blobs if one.digest not in answered and not one.is_foreign]
    yield from (Question("manifest", str(digest)) for digest in documents)
    yield from (Question("blob", str(digest)) for digest in blobs)


def _unknown_document(wanted: Wanted, documents: Iterable[Document], facts: Facts) -> tuple[Question, ...]:
    """Ask for documents by digest, where a hit would save more questions than it costs."""
    return tuple(
        Question("manifest", str(one.digest))
        for one in documents
        if one.digest not in facts.proofs
        and one.digest not in facts.absent
        and (one.is_index or sum(blob.digest not in facts.proofs for blob in one.blobs) > 1)
    )


def _concluded(wanted: Wanted, facts: Facts) -> Facts:
    """Return the facts with what follows from them: a tag that names a manifest proves it, and everything it lists."""
    proofs, absent = dict(facts.proofs), set(facts.absent)
    for tag, named in facts.tags.items():
        if named is not None:
            proofs.setdefault(named.digest, "seen")
        elif tag == str(wanted.root.digest):
            proofs.pop(wanted.root.digest, None)  # whatever was remembered
            absent.add(wanted.root.digest)
    known = {**{d: one for d, one in facts.documents.items() if one is not None}, **wanted.by_digest}
    todo = [digest for digest in proofs if digest in known]
    seen = set(todo)
    while todo:
        document = known[todo.pop()]
        for one in (*document.children, *document.blobs):
            # What a registry has just said not to have is not inferred again.
            if one.digest not in absent and not one.is_foreign:
                proofs.setdefault(one.digest, "inferred")
            if one.digest in known and one.digest not in seen and one.digest in proofs:
                seen.add(one.digest)
                todo.append(one.digest)
    return msgspec.structs.replace(facts, proofs=proofs, absent=absent)


def _about_old(wanted: Wanted, old: Sequence[Descriptor], facts: Facts) -> Iterator[Question]:
    """Ask what the image that a tag names now consists of: what that lists need not be asked for one by one."""
    unknown = [blob for blob in _open(wanted, facts) if blob.digest not in facts.elsewhere]
    for root in {one.digest: one for one in old}.values():
        for one in _old_documents(wanted, root, facts):
            if one not in facts.documents:
                yield Question("document", str(one), free=True)
            elif facts.documents[one] is None and one not in facts.absent:
                # It was not in memory. Its manifests cost a request each; as many as ours, as far as can be told.
                cost = len(wanted.documents) if one == root.digest else 1
                if cost < len(unknown):
                    yield Question("document", str(one))


def _old_documents(wanted: Wanted, root: Descriptor, facts: Facts) -> list[Digest]:
    """The documents of an old image that may tell something: the root, then children whose blobs are in question."""
    document = facts.documents.get(root.digest)
    if document is None:
        return [root.digest]
    ours = {one.digest for one in wanted.documents}
    platforms = {
        child.platform for parent in wanted.documents for child in parent.children if child.digest not in facts.proofs
    }
    listed = [child for child in document.children if child.digest not in ours and child.is_manifest]
    same = [child for child in listed if child.platform in platforms] if platforms else listed
    return [root.digest, *(child.digest for child in same)]


def _about_blobs(wanted: Wanted, is_known: bool, facts: Facts) -> Iterator[Question]:
    for blob in _open(wanted, facts):
        if blob.digest in facts.absent or blob.digest in facts.elsewhere:
            continue  # a mount that fails begins the upload, so that no question would be saved
        least = ASK_NEW_FROM_BYTES if is_known else ASK_FROM_BYTES
        if blob.size_bytes >= least or blob.digest in facts.begun:
            yield Question("blob", str(blob.digest))


def _open(wanted: Wanted, facts: Facts) -> list[Descriptor]:
    """Blobs of documents that are not known to be there, which are themselves not known to be there."""
    return [
        blob
        for document in wanted.documents
        if document.digest not in facts.proofs
        for blob in document.blobs
        if blob.digest not in facts.proofs and not blob.is_foreign
    ]


# -- plans


def plan(name: RepositoryName, wanted: Wanted, tags: Sequence[str], facts: Facts, *, asked: int = 0) -> Plan:
    """Say what to do, by all that is known. Order (SPEC 11.2): mounts, then uploads, the largest first."""
    facts = _concluded(wanted, facts)
    root = wanted.root
    is_whole = root.digest in facts.proofs
    broken = _broken(wanted, facts)
    blobs = sorted(
        (_blob_step(blob, facts, is_whole) for blob in wanted.blobs),
        key=lambda step: (step.action != "mount", -step.size_bytes, step.digest.hex),
    )
    manifests = tuple(_manifest_step(one, facts, is_whole, broken) for one in wanted.documents[:-1])
    order = sorted(tags, key=lambda tag: (tag in _LAST_TAGS, tag))
    steps = [_tag_step(tag, root.digest, facts, is_broken=root.digest in broken) for tag in order]
    return Plan(name, root.digest, tuple(blobs), manifests, tuple(steps), len(root.data), asked)


def _broken(wanted: Wanted, facts: Facts) -> set[Digest]:
    """Find documents that list something that is not there, at any depth: a registry has to see them again."""
    broken: set[Digest] = set()
    for document in wanted.documents:
        listed = {one.digest for one in (*document.children, *document.blobs)}
        if not listed.isdisjoint(facts.absent) or not listed.isdisjoint(broken):
            broken.add(document.digest)
    return broken


_REASONS: dict[Proof, str] = {
    "uploaded": "uploaded earlier",
    "mounted": "mounted earlier",
    "seen": "seen by a request",
    "inferred": "listed by a manifest that is there",
}


def _blob_step(blob: Descriptor, facts: Facts, is_whole: bool) -> BlobStep:
    about = (blob.digest, blob.size_bytes, blob.media_type)
    proof = facts.proofs.get(blob.digest)
    if proof is not None:
        return BlobStep(*about, "inferred" if proof == "inferred" else "present", _REASONS[proof])
    if is_whole and blob.digest not in facts.absent:
        return BlobStep(*about, "inferred", _REASONS["inferred"])
    if blob.is_foreign:
        return BlobStep(*about, "foreign", "registries do not take foreign layers")
    if source := facts.elsewhere.get(blob.digest):
        return BlobStep(*about, "mount", f"{source} {'may have' if blob.digest in facts.guessed else 'has'} it", source)
    return BlobStep(*about, "upload", "not there" if blob.digest in facts.absent else "not known to be there")


def _manifest_step(one: Document, facts: Facts, is_whole: bool, broken: Collection[Digest]) -> ManifestStep:
    about = (one.digest, len(one.data), one.media_type)
    is_absent = one.digest in facts.absent
    proof = facts.proofs.get(one.digest, "inferred" if is_whole and not is_absent else None)
    if proof is None:
        return ManifestStep(*about, "put", "not there" if is_absent else "not known to be there")
    if one.digest in broken:
        return ManifestStep(*about, "put", "lists what was missing")
    return ManifestStep(*about, "present", _REASONS[proof])


def _tag_step(tag: str, root: Digest, facts: Facts, *, is_broken: bool) -> TagStep:
    named = facts.tags.get(tag)
    if named is None:
        return TagStep(tag, "put", "new", None)
    if named.digest != root:
        return TagStep(tag, "put", f"names {named.digest} now", named.digest)
    if is_broken:
        return TagStep(tag, "put", "names it already, and parts of it were missing", named.digest)
    return TagStep(tag, "present", "names it already", named.digest)
