"""A source of text: `source: sums` or `source: "sums:500"`, so many documents of sums."""

from collections.abc import Iterator

from morphogen.data.document import Document


def sums(arguments: str) -> Iterator[Document]:
    """The same documents, in the same order, for the same arguments; a new version of the package may change them."""
    for i in range(int(arguments or 100)):
        lines = [f"{i} + {j} = {i + j}" for j in range(i % 7, i % 7 + 20)]
        yield Document(key=str(i), text="\n".join(lines))
