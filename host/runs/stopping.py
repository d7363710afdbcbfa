# SPDX-License-Identifier: Apache-2.0
"""The user's Cancel."""


def interrupt() -> None:
    """Raise the host's interrupt where the user has pressed Cancel."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether the user cancelled, as against a failure."""
    import comfy.model_management

    return isinstance(
        error, comfy.model_management.InterruptProcessingException | KeyboardInterrupt
    )
