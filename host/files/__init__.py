# SPDX-License-Identifier: Apache-2.0
"""Files and folders of the host: LoRAs, states, names that are not trusted."""
