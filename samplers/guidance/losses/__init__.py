# SPDX-License-Identifier: Apache-2.0
"""What a picture is measured by, one file each."""
