"""Answer the planner's questions from memory and by requests. Changes nothing in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detlayer.errors import AuthError, ConfigError, LayerError, NotFoundError
from detlayer.oci.documents import Wanted, parse_document
from detlayer.oci.references import RepositoryName, parse_reference
from detlayer.oci.types import BASE_NAME
from detlayer.transfer.knowledge import Knowledge
from detlayer.transfer.plan import Facts, Plan, Question, ask, confirm, plan
from detlayer.transfer.workers import Job, work_off

if TYPE_CHECKING:
    from detlayer.registry.client import Repository


class Survey:
    """Facts about one repository for one image. With `check`, everything is requested."""

    def __init__(
        self, repository: Repository, tags: Sequence[str], knowledge: Knowledge, *, check: bool = False
    ) -> None:
        self.repository = repository
        self.tags = tuple(tags)
        self.knowledge = knowledge
        self.check = check
        self.facts = Facts()
        self._asked = 0
        # With less than push access, a token service may reject a repository that does not exist yet.
        repository.expect_push()

    def ask_tags(self, root_only: Wanted) -> bool:
        """Resolve the tags; tells whether all of them name the image. Raises RegistryError."""
        if any(tag not in self.facts.tags for tag in self.tags):
            self._answer(ask(root_only, self.tags, self.facts))
        named = [self.facts.tags[tag] for tag in self.tags]
        return all(one is not None and one.digest == root_only.root.digest for one in named)

    def investigate(self, wanted: Wanted, sources: Sequence[RepositoryName] = ()) -> None:
        """Recall known facts, then ask the questions that are worth a request; raises RegistryError.

        `sources` are repositories that may have the image's blobs.
        """
        self._recall(wanted, sources)
        self._doubt()
        while questions := ask(wanted, self.tags, self.facts, check=self.check):
            self._answer(questions)
            self._doubt()

    def adopt(self, plan: Plan, wanted: Wanted) -> bool:
        """Treat a plan's existing blobs as remembered facts; tells whether they are confirmed. Raises RegistryError."""
        there = [blob.digest for blob in plan.blobs if blob.action in ("present", "inferred")]
        there += [document.digest for document in plan.manifests if document.action == "present"]
        known = self.knowledge.known(self.repository.name)
        self.facts.remembered |= dict.fromkeys(there, "inferred")
        self.facts.proofs |= {digest: known[digest] for digest in there if digest in known}
        while free := [question for question in ask(wanted, self.tags, self.facts) if question.free]:
            self._answer(free)
        questions = confirm(wanted, self.facts)
        self._answer(questions)
        return not questions or self.knowledge.holds(self.repository.name) is True

    def plan(self, wanted: Wanted) -> Plan:
        return plan(self.repository.name, wanted, self.tags, self.facts, asked=self._asked)

    # -- from memory

    def _recall(self, wanted: Wanted, sources: Sequence[RepositoryName]) -> None:
        facts, here = self.facts, self.repository.name
        principal, memory = self.repository.principal, self.knowledge.memory
        known = self.knowledge.known(here)
        blobs = {one.digest for one in wanted.blobs if not one.is_foreign}
        elsewhere: dict[RepositoryName, None] = {}
        for digest in known.keys() & (blobs | wanted.by_digest.keys()):
            facts.proofs.setdefault(digest, known[digest])
        for location in memory.locations(here.registry, principal, [*blobs, *wanted.by_digest]):
            if location.name == here:
                facts.remembered.setdefault(location.digest, location.proof)
            elif location.digest in blobs:
                facts.elsewhere.setdefault(location.digest, location.name)
        for digest in blobs - facts.proofs.keys() - facts.remembered.keys():
            if memory.session(principal, here, digest) is not None:
                facts.begun.add(digest)
        for source in (*sources, *_bases(wanted)):
            if source.registry == here.registry and source != here:
                elsewhere.setdefault(source)
        for source in elsewhere:  # a failing mount starts the upload, so a guess costs nothing
            for digest in blobs - facts.elsewhere.keys():
                facts.elsewhere[digest] = source
                facts.guessed.add(digest)
        for digest in facts.begun:
            facts.elsewhere.pop(digest, None)
        holds = self.knowledge.holds(here)
        if holds is not None and not self.check:
            facts.settle(holds=holds)

    def _doubt(self) -> None:
        """Drop all remembered facts if one proved wrong."""
        if self.facts.remembered.keys() & self.facts.absent:
            self.facts.settle(holds=False)
            self.knowledge.refute(self.repository)

    # -- from the registry

    def _answer(self, questions: Sequence[Question]) -> None:
        self._asked += sum(not question.free for question in questions)
        jobs = [Job(lambda question=question: self._answer_one(question)) for question in questions]  # type: ignore[misc]
        if jobs:
            work_off(jobs)

    def _answer_one(self, question: Question) -> None:
        facts, repository = self.facts, self.repository
        if question.about == "document":
            self._read_old(question)
            return
        if question.about == "tag":
            facts.tags[question.target] = named = repository.head_manifest(question.target)
            if named is None and question.target.startswith("sha256:"):  # no tag has a colon
                facts.absent.add(question.digest)
            return
        if question.confirms:
            facts.settle(holds=self.knowledge.confirm(repository, lambda: self._look(question)))
        else:
            self._look(question)

    def _look(self, question: Question) -> bool:
        """Check whether a blob or manifest exists, and record the result."""
        digest = question.digest
        if question.about == "manifest":
            named = self.repository.head_manifest(question.target)
            is_there = named is not None and named.digest == digest
        else:
            is_there = self.repository.head_blob(digest) is not None
        if is_there:
            self.facts.proofs[digest] = "seen"
            self.knowledge.learn(self.repository, {digest: "seen"})
        else:
            self.facts.absent.add(digest)
        return is_there

    def _read_old(self, question: Question) -> None:
        """Record the contents of an old image. Failing is harmless: it only leaves more questions."""
        digest = question.digest
        try:
            if question.free:
                data = self.knowledge.memory.document(digest)
                self.facts.documents[digest] = None if data is None else parse_document(data, question.target)
                return
            document = self.repository.get_manifest(question.target)
        except (LayerError, NotFoundError, AuthError):
            self.facts.documents[digest] = None
            self.facts.absent.add(digest)
            return
        self.facts.documents[digest] = document
        self.knowledge.memory.keep_document(document.data)


def _bases(wanted: Wanted) -> list[RepositoryName]:
    """Return the repositories that the image's annotations name as its base (image-spec annotations.md)."""
    found = []
    for document in wanted.documents:
        name = (document.annotations or {}).get(BASE_NAME, "")
        try:
            found += [parse_reference(name).name] if name else []
        except ConfigError:
            continue  # an annotation may contain anything
    return found
