# SPDX-License-Identifier: Apache-2.0
"""Everything that makes graft-mini: drawings, captions, the training stages, export and evaluation."""
