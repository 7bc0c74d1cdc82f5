//! One small file per family: `config.json` and key names to a decoder description.
