"""The one error of a bundle: which file, which tensor, what is wrong."""


class BundleError(Exception):
    """A file of a bundle is not what it must be.

    `file` and `tensor` name the place ("" when no single tensor is at fault); `code` is the exit status of `refmoe
    check`: 1 for content that is wrong, 2 for what cannot be read or belongs to another version of the specification.
    """

    def __init__(self, file, tensor, message, code=1):
        self.file, self.tensor, self.message, self.code = str(file), tensor, message, code
        place = f"{self.file}: tensor {tensor!r}" if tensor else self.file
        super().__init__(f"{place}: {message}")
