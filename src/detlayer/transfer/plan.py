"""Plan a push to one repository, blob by blob, each step with a reason. Pure functions over facts.

    while questions := ask(wanted, facts): learn the answers
    plan(wanted, facts)

`ask` returns only questions that cost less than they are expected to save; a push that changes nothing needs one. Facts
from earlier runs count only once the registry has confirmed one of them. Plans keep SPEC 11: blobs come before
manifests, manifests before indexes, and tags last, so a tag never names an incomplete image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from detlayer.oci.documents import Document, Wanted
from detlayer.oci.ports import Proof
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest, parse_digest

# The sizes from which a blob is checked before it is sent. If an old image of the same tag is known, blobs that it
# lacks are most likely new, so only large ones are checked.
ASK_FROM_BYTES = 1 << 20
ASK_NEW_FROM_BYTES = 16 << 20
TELLING_FROM_BYTES = 128  # smaller blobs, such as empty layers and configs, are shared by unrelated images

_LAST_TAGS = frozenset(("latest", "stable", "main", "master", "edge", "nightly", "current"))

Action = Literal["present", "inferred", "mount", "upload", "foreign"]


class Facts(msgspec.Struct):
    """Facts about one repository: those of this run, and separately those remembered from earlier runs."""

    tags: dict[str, Descriptor | None] = {}
    """The current image of each destination tag; None if the tag does not exist."""
    proofs: dict[Digest, Proof] = {}
    """Blobs and manifests that exist."""
    remembered: dict[Digest, Proof] = {}
    """Blobs and manifests from earlier runs; unused by plans until one is confirmed."""
    absent: set[Digest] = set()
    """Blobs and manifests that were not found in this run."""
    documents: dict[Digest, Document | None] = {}
    """Old manifests of the destination tags; None if one could not be fetched."""
    elsewhere: dict[Digest, RepositoryName] = {}
    """Repositories of the same registry that blobs can be mounted from."""
    guessed: set[Digest] = set()
    """The part of `elsewhere` that is a guess: a mount that fails becomes an upload."""
    begun: set[Digest] = set()
    """Blobs whose upload an earlier run began, and may have completed."""

    def demote(self, digests: Iterable[Digest]) -> None:
        """Mark digests as missing, and drop the facts about them."""
        for digest in digests:
            self.proofs.pop(digest, None)
            self.elsewhere.pop(digest, None)
            self.absent.add(digest)

    def settle(self, *, holds: bool) -> None:
        """Accept the remembered facts, or drop them."""
        for digest, proof in self.remembered.items() if holds else ():
            if digest not in self.absent:
                self.proofs.setdefault(digest, proof)
        self.remembered.clear()


class Question(msgspec.Struct, frozen=True):
    """A question to the registry: what a tag names, whether a manifest or blob exists, or a manifest's contents.

    A `free` question is answered from memory or not at all, without a request. A `confirms` question asks for a
    remembered fact; its answer accepts or drops all of them (`Facts.settle`).
    """

    about: Literal["tag", "manifest", "blob", "document"]
    target: str
    free: bool = False
    confirms: bool = False

    @property
    def digest(self) -> Digest:
        return parse_digest(self.target)


class BlobStep(msgspec.Struct, frozen=True):
    """The action for a blob. `source` is the repository to mount it from."""

    digest: Digest
    size_bytes: int
    media_type: str
    action: Action
    reason: str
    source: RepositoryName | None = None


class ManifestStep(msgspec.Struct, frozen=True):
    """The action for a manifest or index, by its digest."""

    digest: Digest
    size_bytes: int
    media_type: str
    action: Literal["present", "put"]
    reason: str


class TagStep(msgspec.Struct, frozen=True):
    """The action for a tag. `seen` is the digest that it named when the plan was made."""

    tag: str
    action: Literal["present", "put"]
    reason: str
    seen: Digest | None


class Plan(msgspec.Struct, frozen=True):
    """The steps of a push to one repository, in order: blobs, manifests by digest, tags.

    `asked` counts the requests made for planning.
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
        """Whether it restores parts of an image that a tag already names."""
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
        """The number of requests to execute it: one for a mount, two for an upload (more in chunks)."""
        per_blob = sum(2 if one.action == "upload" else 1 for one in self.sends)
        return per_blob + len(self.puts) + len(self.tag_puts)

    @property
    def upload_bytes(self) -> int:
        """Bytes of blobs and documents to send."""
        blobs = sum(one.size_bytes for one in self.blobs if one.action == "upload")
        return blobs + sum(one.size_bytes for one in self.puts) + len(self.tag_puts) * self.root_bytes

    @property
    def all_bytes(self) -> int:
        """Bytes of the whole image, including documents."""
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
    """Return the questions to ask next, all at once; empty when a plan can be made.

    A push by digest alone has the digest as its only tag. With `check`, everything is asked for.
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
        # Nothing is known. Check whether the image, or a part of it, exists under another name.
        if unknown := _unknown_document(wanted, (wanted.root,), believed):
            return unknown
        if unknown := _unknown_document(wanted, wanted.documents[:-1], believed):
            return unknown
    is_known = any(facts.documents.get(one.digest) is not None for one in old)
    return (*_about_blobs(wanted, is_known, believed), *confirm(wanted, facts))


def confirm(wanted: Wanted, facts: Facts) -> tuple[Question, ...]:
    """Ask for one remembered fact, if a plan would depend on any.

    Chooses the topmost layer: images on the same base may have restored the lower ones since.
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
    """Return the facts as if all remembered ones were confirmed."""
    return _concluded(wanted, msgspec.structs.replace(facts, proofs={**facts.remembered, **facts.proofs}))


def _about_everything(wanted: Wanted, facts: Facts) -> Iterator[Question]:
    """Ask for everything not seen in this run; the root is known from the tags, or is put."""
    answered = facts.proofs.keys() | facts.absent
    documents = [one.digest for one in wanted.documents[:-1] if one.digest not in answered]
    blobs = [one.digest for one in wanted.blobs if one.digest not in answered and not one.is_foreign]
    yield from (Question("manifest", str(digest)) for digest in documents)
    yield from (Question("blob", str(digest)) for digest in blobs)


def _unknown_document(wanted: Wanted, documents: Iterable[Document], facts: Facts) -> tuple[Question, ...]:
    """Ask for documents by digest where a hit saves more questions than it costs."""
    return tuple(
        Question("manifest", str(one.digest))
        for one in documents
        if one.digest not in facts.proofs
        and one.digest not in facts.absent
        and (one.is_index or sum(blob.digest not in facts.proofs for blob in one.blobs) > 1)
    )


def _concluded(wanted: Wanted, facts: Facts) -> Facts:
    """Return the facts with conclusions: a tag that names a manifest proves it and everything it lists."""
    proofs, absent = dict(facts.proofs), set(facts.absent)
    for tag, named in facts.tags.items():
        if named is not None:
            proofs.setdefault(named.digest, "seen")
        elif tag == str(wanted.root.digest):
            proofs.pop(wanted.root.digest, None)  # overrides remembered facts
            absent.add(wanted.root.digest)
    known = {**{d: one for d, one in facts.documents.items() if one is not None}, **wanted.by_digest}
    todo = [digest for digest in proofs if digest in known]
    seen = set(todo)
    while todo:
        document = known[todo.pop()]
        for one in (*document.children, *document.blobs):
            # Do not infer what the registry has just reported missing.
            if one.digest not in absent and not one.is_foreign:
                proofs.setdefault(one.digest, "inferred")
            if one.digest in known and one.digest not in seen and one.digest in proofs:
                seen.add(one.digest)
                todo.append(one.digest)
    return msgspec.structs.replace(facts, proofs=proofs, absent=absent)


def _about_old(wanted: Wanted, old: Sequence[Descriptor], facts: Facts) -> Iterator[Question]:
    """Ask for the contents of the image that a tag names now: its blobs need no questions of their own."""
    unknown = [blob for blob in _open(wanted, facts) if blob.digest not in facts.elsewhere]
    for root in {one.digest: one for one in old}.values():
        for one in _old_documents(wanted, root, facts):
            if one not in facts.documents:
                yield Question("document", str(one), free=True)
            elif facts.documents[one] is None and one not in facts.absent:
                # Not in memory. Each of its manifests costs a request; assume as many as in the new image.
                cost = len(wanted.documents) if one == root.digest else 1
                if cost < len(unknown):
                    yield Question("document", str(one))


def _old_documents(wanted: Wanted, root: Descriptor, facts: Facts) -> list[Digest]:
    """Return the documents of an old image to read: the root, then children whose blobs are in question."""
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
            continue  # a failing mount starts the upload, so a question saves nothing
        least = ASK_NEW_FROM_BYTES if is_known else ASK_FROM_BYTES
        if blob.size_bytes >= least or blob.digest in facts.begun:
            yield Question("blob", str(blob.digest))


def _open(wanted: Wanted, facts: Facts) -> list[Descriptor]:
    """Return the blobs not known to exist, of documents not known to exist."""
    return [
        blob
        for document in wanted.documents
        if document.digest not in facts.proofs
        for blob in document.blobs
        if blob.digest not in facts.proofs and not blob.is_foreign
    ]


# -- plans


def plan(name: RepositoryName, wanted: Wanted, tags: Sequence[str], facts: Facts, *, asked: int = 0) -> Plan:
    """Make a plan from all facts. Order (SPEC 11.2): mounts, then uploads, largest first."""
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
    """Find documents that list something missing, at any depth: they must be put again."""
    broken: set[Digest] = set()
    for document in wanted.documents:
        listed = {one.digest for one in (*document.children, *document.blobs)}
        if not listed.isdisjoint(facts.absent) or not listed.isdisjoint(broken):
            broken.add(document.digest)
    return broken


_REASONS: dict[Proof, str] = {
    "uploaded": "uploaded earlier",
    "mounted": "mounted earlier",
    "seen": "found by a request",
    "inferred": "listed by an existing manifest",
}


def _blob_step(blob: Descriptor, facts: Facts, is_whole: bool) -> BlobStep:
    about = (blob.digest, blob.size_bytes, blob.media_type)
    proof = facts.proofs.get(blob.digest)
    if proof is not None:
        return BlobStep(*about, "inferred" if proof == "inferred" else "present", _REASONS[proof])
    if is_whole and blob.digest not in facts.absent:
        return BlobStep(*about, "inferred", _REASONS["inferred"])
    if blob.is_foreign:
        return BlobStep(*about, "foreign", "registries do not accept foreign layers")
    if source := facts.elsewhere.get(blob.digest):
        return BlobStep(*about, "mount", f"{source} {'may have' if blob.digest in facts.guessed else 'has'} it", source)
    return BlobStep(*about, "upload", "missing" if blob.digest in facts.absent else "not known to exist")


def _manifest_step(one: Document, facts: Facts, is_whole: bool, broken: Collection[Digest]) -> ManifestStep:
    about = (one.digest, len(one.data), one.media_type)
    is_absent = one.digest in facts.absent
    proof = facts.proofs.get(one.digest, "inferred" if is_whole and not is_absent else None)
    if proof is None:
        return ManifestStep(*about, "put", "missing" if is_absent else "not known to exist")
    if one.digest in broken:
        return ManifestStep(*about, "put", "lists missing parts")
    return ManifestStep(*about, "present", _REASONS[proof])


def _tag_step(tag: str, root: Digest, facts: Facts, *, is_broken: bool) -> TagStep:
    named = facts.tags.get(tag)
    if named is None:
        return TagStep(tag, "put", "new", None)
    if named.digest != root:
        return TagStep(tag, "put", f"names {named.digest} now", named.digest)
    if is_broken:
        return TagStep(tag, "put", "up to date, but parts were missing", named.digest)
    return TagStep(tag, "present", "up to date", named.digest)
