//! What a user writes: the configuration, and `--set`.

use super::{Reader, file, texts};
use crate::fuzz::shape::Shape;
use mpo::config::{self, Argument};

const TOKENS: &[&str] = &[
    "[model]",
    "[data]",
    "[objective]",
    "[train]",
    "[optimizer]",
    "[schedule]",
    "[retention]",
    "[adapter]",
    "[checkpoint]",
    "[eval]",
    "[canary]",
    "[output]",
    "path",
    "kind",
    "lr",
    "beta",
    "max_steps",
    "epochs",
    "batch_size",
    "sides",
    "languages",
    "targets",
    "layers",
    "builtin:tiny",
    "\"lora\"",
    "\"mpo\"",
    "\"dpo\"",
    "=",
    "==",
    "\"\"\"",
    "'''",
    "#",
    "[[",
    "]]",
    "1979-05-27T07:32:00Z",
    "inf",
    "nan",
    "0x7fffffffffffffff",
    "1_000",
    "[a.b.c.d]",
    ",",
    "\\u0000",
    "\\U0010ffff",
];

pub fn readers() -> Vec<Reader> {
    vec![
        Reader::new(
            "config",
            Shape::Toml,
            || ["configs/smoke.toml", "configs/llama31.toml", "configs/lora.toml", "configs/qwen25.toml"].map(file).to_vec(),
            TOKENS,
            |_| {
                Box::new(|input| {
                    let text = String::from_utf8_lossy(input);
                    let config = config::parse(&text, "run.toml", &[])?;
                    // What is resolved resolves to itself, but for the secrets in addresses; a seed or a path may be beyond TOML.
                    if let Some(resolved) = config.to_toml().ok().filter(|resolved| !resolved.contains("hidden")) {
                        let again = config::parse(&resolved, "resolved.toml", &[]).expect("what was resolved is right");
                        assert_eq!(again, config, "a resolved configuration is another when it is read");
                    }
                    Ok(format!("{config:?}"))
                })
            },
        ),
        Reader::new(
            "set",
            Shape::Bytes,
            || {
                texts(&[
                    "train.max_steps=5\noptimizer.lr=1e-4",
                    "data.languages=[\"sw\", \"bn\"]\ndata.limit=3",
                    "adapter.kind=lora\nadapter.rank=4\nadapter.targets=[\"q_proj\"]\nadapter.layers=\"0..2\"",
                    "objective.kind=dpo\nobjective.beta=0.1\nretention.kind=none",
                    "model.path=builtin:tiny\noutput.dir=runs/x\ntrain.epochs=2",
                ])
            },
            TOKENS,
            |_| {
                let smoke = String::from_utf8(file("configs/smoke.toml")).unwrap();
                Box::new(move |input| {
                    let text = String::from_utf8_lossy(input).into_owned();
                    let typed: Vec<String> = text.split('\n').map(str::to_owned).collect();
                    let trained = config::parse(&smoke, "smoke.toml", &typed);
                    let arguments = [Argument { flag: "--model", key: "model.path", value: Some(text.as_str()) }];
                    let scored = config::load_for_scoring(None, &arguments, &typed);
                    Ok(format!("{:?} {:?}", trained?, scored.map_err(|error| error.to_string())))
                })
            },
        ),
    ]
}
