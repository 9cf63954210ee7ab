"""Gaussian mixtures: the reference, its fit, and its choice by cross-validation."""
