"""Model files: conversion to a decoder graph and a tokenizer."""
