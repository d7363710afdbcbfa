# SPDX-License-Identifier: Apache-2.0
"""Figures of the trainer: how far it is from closed forms and from the libraries."""
