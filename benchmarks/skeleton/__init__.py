# SPDX-License-Identifier: Apache-2.0
"""What the walking skeleton promises, measured; `make test` shares these functions in small."""
