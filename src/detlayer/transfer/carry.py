"""Execute a plan: blobs, then manifests, then tags. Tags only ever name complete images (SPEC 11.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, suppress
from graphlib import TopologicalSorter
from threading import RLock

from detlayer.errors import AuthError, DetlayerError, IntegrityError, LayerError, NotFoundError, RejectedError
from detlayer.oci.documents import Document, Wanted, parse_document
from detlayer.oci.ports import Body, ImageSource, Proof, Session, TransferReporter
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor, Digest
from detlayer.registry.client import Repository
from detlayer.registry.download import RemoteBody, spooled
from detlayer.registry.error_responses import BlobRefusedError, RefusalReason, RefusedError, RepositoryMissingError
from detlayer.registry.upload import Progress, upload
from detlayer.transfer.plan import BlobStep, Plan, TagStep
from detlayer.transfer.referrers import confirm_referrers
from detlayer.transfer.remote import gather
from detlayer.transfer.results import TagResult
from detlayer.transfer.survey import Survey
from detlayer.transfer.workers import Job, work_off

_SMALL_BYTES = 64 << 10  # larger blobs take a data worker
_PIECE_BYTES = 1 << 20
_MAX_SUBJECTS = 32  # the maximum length of a chain of subjects to push

Refused = RefusedError | RepositoryMissingError


class Carrier:
    """Executes one plan for one image."""

    def __init__(
        self,
        survey: Survey,
        image: ImageSource,
        wanted: Wanted,
        reporter: TransferReporter,
        origins: Sequence[Repository],
    ) -> None:
        """Create it. `survey` has the known facts of the repository; `origins` may have the image's blobs."""
        self._repository = survey.repository
        self._image = image
        self._wanted = wanted
        self._facts = survey.facts
        self._knowledge = survey.knowledge
        self._memory = survey.knowledge.memory
        self._reporter = reporter
        self._origins = origins
        self._descriptors = {blob.digest: blob for blob in wanted.blobs}
        self._restored: set[Digest] = set()
        self._found: set[Digest] = set()
        self._restoring = RLock()
        self._subjects: set[Digest] = set()

    def carry_out(self, plan: Plan) -> list[TagResult]:
        """Execute the plan; a tag that fails does not stop the others.

        Raises RegistryError, IntegrityError and LayerError for failures that affect all tags.
        """
        if plan.is_done:
            confirm_referrers(self._repository, self._wanted.documents)
            return [TagResult(step.tag, "present") for step in plan.tags]
        self._repository.expect_push(one.source for one in plan.sends if one.source is not None)
        bodies = self._find_bodies(plan)
        work_off([Job(self._bring(one, bodies.get(one.digest)), one.size_bytes > _SMALL_BYTES) for one in plan.sends])
        wanted = self._wanted.by_digest
        puts = {one.digest for one in plan.puts}
        for level in _levels(self._wanted):
            documents = [wanted[digest] for digest in level if digest in puts]
            if documents:
                work_off([Job(self._put_by_digest(one)) for one in documents])
        confirm_referrers(self._repository, self._wanted.documents[:-1])
        results = [self._put_tag(step) for step in plan.tags]
        if any(one.state != "failed" for one in results):
            confirm_referrers(self._repository, (self._wanted.root,))
        for document in wanted.values():
            self._memory.keep_document(document.data)
        return results

    # -- blobs

    def _find_bodies(self, plan: Plan) -> dict[Digest, Body]:
        """Find the bytes of all uploads before sending any: if one is missing, nothing is sent."""
        uploads = [self._descriptors[one.digest] for one in plan.sends if one.action == "upload"]
        found = work_off([Job(lambda blob=blob: self._body(blob)) for blob in uploads])  # type: ignore[misc]
        return dict(zip((blob.digest for blob in uploads), found, strict=True))

    def _bring(self, step: BlobStep, body: Body | None) -> Callable[[], None]:
        return lambda: self._upload(self._descriptors[step.digest], step.source, body)

    def _upload(self, blob: Descriptor, mount_from: RepositoryName | None = None, body: Body | None = None) -> None:
        name, principal = self._repository.name, self._repository.principal
        label = str(blob.digest)

        def keep(session: Session | None) -> None:
            # Remember it before the session is dropped: otherwise a run that is killed here would send it again.
            if session is not None:
                self._memory.keep_session(principal, name, blob.digest, session)

        self._reporter.transfer(label, blob.size_bytes)
        try:
            with ExitStack() as stack:
                outcome = upload(
                    self._repository,
                    blob,
                    lambda: self._at_rest(body or self._body(blob), stack),
                    mount_from=mount_from,
                    resume=self._memory.session(principal, name, blob.digest),
                    progress=Progress(lambda count: self._reporter.advance(label, count), keep),
                )
        except IntegrityError as error:
            self._memory.keep_session(principal, name, blob.digest, None)
            if isinstance(error, BlobRefusedError):
                self._blame(blob, error)
            raise
        self._learn({blob.digest: outcome})
        self._memory.keep_session(principal, name, blob.digest, None)
        self._reporter.done(label, outcome)

    def _at_rest(self, body: Body, stack: ExitStack) -> Body:
        """Download a blob that comes from the target registry itself: some servers handle one request at a time."""
        if isinstance(body, RemoteBody) and body.repository.name.host == self._repository.name.host:
            return stack.enter_context(spooled(body))
        return body

    def _body(self, blob: Descriptor) -> Body:
        body = self._image.body(blob) or self._remote_body(blob)
        if body is None:
            raise LayerError(
                "blob-missing",
                f"the image lacks {blob.digest}, and {self._repository.name} does not have it",
                "pull the whole image, or name a repository that has its layers: --source REPOSITORY",
            )
        if body.size_bytes != blob.size_bytes:
            raise IntegrityError(
                "blob-size",
                f"{blob.digest} has {body.size_bytes} bytes, but its manifest says {blob.size_bytes}",
                "build or pull the image again",
            )
        return body

    def _remote_body(self, blob: Descriptor) -> Body | None:
        """Find a repository for a blob that is not local; the last candidate is not checked, since GET will fail."""
        for origin in self._origins:
            with suppress(AuthError):  # may still be good for mounts
                if origin is self._origins[-1] or origin.head_blob(blob.digest) is not None:
                    return RemoteBody(origin, blob)
        return None

    def _blame(self, blob: Descriptor, error: IntegrityError) -> None:
        """After a digest mismatch in the registry, verify the local blob to find the cause."""
        sha = hashlib.sha256()
        with self._body(blob).open() as source:
            while piece := source.read(_PIECE_BYTES):
                sha.update(piece)
        if sha.hexdigest() != blob.digest.hex:
            raise IntegrityError(
                "blob-digest",
                f"blob {blob.digest} of the image is corrupt: found sha256:{sha.hexdigest()}",
                "build or pull the image again",
            ) from error

    # -- documents

    def _put_by_digest(self, document: Document) -> Callable[[], None]:
        return lambda: self._put(document, str(document.digest))

    def _put_tag(self, step: TagStep) -> TagResult:
        if step.action == "present":
            return TagResult(step.tag, "present")
        root = self._wanted.root
        try:
            try:
                self._put(root, step.tag)
            except RefusedError as refused:
                if refused.reason is not RefusalReason.IMMUTABLE_TAG or step.seen != root.digest:
                    raise
                self._put(
                    root, str(root.digest)
                )  # the tag names it already; put it again so that the registry restores it
        except DetlayerError as error:
            return TagResult(step.tag, "failed", error)
        return TagResult(step.tag, "pushed")

    def _put(self, document: Document, target: str) -> None:
        """Put a document; if the registry misses its subject or parts, restore them while that makes progress."""
        needed = self._needed(document)
        restored = self._restored.intersection(needed)
        may_lack_subject = True
        while (refused := self._repository.put_manifest(target, document)) is not None:
            still = self._bring_subject(document, refused) if may_lack_subject else refused
            if still is None:
                may_lack_subject = False  # put once; try again only after restoring something else
                continue
            if not still.reason.may_mean_missing_parts:
                raise still
            with self._restoring:
                self._restore(self._find_lost(needed, still))
            before, restored = restored, self._restored.intersection(needed)
            if restored == before:  # another document may have needed the same parts
                raise still
            may_lack_subject = True
        self._learn({document.digest: "uploaded"})

    def _needed(self, document: Document) -> list[Digest]:
        """Return the digests that the registry may require before a document."""
        named = [one.digest for one in (*document.children, *document.blobs) if not one.is_foreign]
        if document.subject is not None and document.subject.digest in self._wanted.by_digest:
            named.append(document.subject.digest)
        return list(dict.fromkeys(named))

    def _find_lost(self, needed: Collection[Digest], refused: Refused) -> list[Digest]:
        """Return the digests that the registry lost: those in the refusal, and those not found by HEAD.

        A refusal may have any code and name all, one or none of them. Each digest is checked and restored once.
        """
        said = set(refused.digests)
        sent = self._knowledge.known(self._repository.name)
        unsent = [one for one in needed if one not in self._restored and sent.get(one) != "uploaded"]
        doubtful = [one for one in unsent if one not in said and one not in self._found]
        answers = work_off([Job(lambda digest=digest: self._is_there(digest)) for digest in doubtful])  # type: ignore[misc]
        lost = {digest for digest, is_there in zip(doubtful, answers, strict=True) if not is_there}
        self._found.update(set(doubtful) - lost)
        if refused.reason is RefusalReason.MISSING_PARTS and not lost and not said.intersection(needed):
            return unsent  # HEAD finds blobs that PUT rejects
        return [one for one in needed if one not in self._restored and (one in said or one in lost)]

    def _is_there(self, digest: Digest) -> bool:
        if digest in self._wanted.by_digest:
            return self._repository.head_manifest(str(digest)) is not None
        return self._repository.head_blob(digest) is not None

    def _restore(self, missing: Collection[Digest]) -> None:
        """Upload missing blobs again, ignoring what is known about them."""
        self._knowledge.forget(self._repository, missing)
        self._facts.demote(missing)
        documents = self._wanted.by_digest
        blobs = [self._descriptors[digest] for digest in missing if digest in self._descriptors]
        work_off(
            [
                Job(lambda blob=blob: self._upload(blob), blob.size_bytes > _SMALL_BYTES)  # type: ignore[misc]
                for blob in blobs
            ]
        )
        for digest in missing:
            if digest in documents:
                self._put(documents[digest], str(digest))
        self._restored.update(missing)

    # -- subjects

    def _bring_subject(self, document: Document, refused: Refused) -> Refused | None:
        """Put the subject of a refused document; None if the document can be retried.

        Otherwise returns the refusal, amended if the subject was not found.
        """
        subject, named = document.subject, refused.digests
        if subject is None or not refused.reason.may_mean_missing_parts:
            return refused  # a subject does not help with an immutable tag, for example
        if subject.digest not in named and any(one.digest in named for one in (*document.children, *document.blobs)):
            return refused
        with self._restoring:
            if self._repository.head_manifest(str(subject.digest)) is not None:
                return None if subject.digest in self._subjects else refused
            try:
                found = self._find_subject(subject)
            except (LayerError, NotFoundError, AuthError) as error:
                message = f"{refused.message}; subject {subject.digest} not found either ({error.message})"
                hint = "push the subject first"
                if subject.digest in named:
                    raise RejectedError("subject-missing", message, hint) from error
                return refused.with_message(message, hint)  # other parts may be missing too
            self._subjects.add(subject.digest)
            self._carry(found)
        return None

    def _find_subject(self, subject: Descriptor) -> Wanted:
        """Read a subject and its contents; raises the source's errors if it is not found."""
        known = self._wanted.by_digest.get(subject.digest)
        if known is None:
            if len(self._subjects) == _MAX_SUBJECTS:
                raise LayerError("document-invalid", f"over {_MAX_SUBJECTS} nested subjects", "push them one by one")
            known = parse_document(self._image.document(subject), str(subject.digest), subject.media_type)
        return gather(self._image, known)

    def _carry(self, found: Wanted) -> None:
        """Push documents and blobs that are not in the plan, or that it takes for present."""
        here = self._repository.name
        sources = [one.name for one in self._origins if one.name.registry == here.registry and one.name != here]
        self._repository.expect_push(sources[:1])
        blobs = [one for one in found.blobs if not one.is_foreign]
        self._descriptors.update({one.digest: one for one in blobs})

        def bring(blob: Descriptor) -> None:
            if self._repository.head_blob(blob.digest) is None:
                self._upload(blob, sources[0] if sources else None)

        work_off([Job(lambda blob=blob: bring(blob), blob.size_bytes > _SMALL_BYTES) for blob in blobs])  # type: ignore[misc]
        for one in found.documents:
            self._put(one, str(one.digest))
        confirm_referrers(self._repository, found.documents)

    def _learn(self, found: dict[Digest, Proof]) -> None:
        self._facts.proofs.update(found)
        self._knowledge.learn(self._repository, found)


def _levels(wanted: Wanted) -> Iterator[Sequence[Digest]]:
    """Yield the documents below the root in groups that can be put in parallel.

    Children come in an earlier group than their parents, and subjects before their referrers. Digests rule out cycles.
    """
    below = {one.digest: one for one in wanted.documents[:-1]}
    sorter = TopologicalSorter[Digest]()
    for digest, document in below.items():
        named = (*document.children, *((document.subject,) if document.subject else ()))
        sorter.add(digest, *(one.digest for one in named if one.digest in below))
    sorter.prepare()
    while sorter.is_active():
        level = sorter.get_ready()
        yield level
        sorter.done(*level)
