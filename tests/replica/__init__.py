"""Tests of zerocache.replica."""
