"""The presets: `default`, `paper`, `author`, `smoke`, as TOML files over the defaults of `m3di.config`."""
