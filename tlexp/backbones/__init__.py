"""Adapters that bring every library's models under one contract, `tlexp.backbones.base.Backbone`."""
