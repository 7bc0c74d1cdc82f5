//! Checkpoint folders: what is written reads back, whatever the shards; what is damaged is refused with its file and tensor.

use mpo::model::family::{check_weights, describe, expected_tensors};
use mpo::model::weights::{Checkpoint, SavedDtype, TensorToSave, save};
use serde_json::json;
use std::fs;
use std::path::Path;

const NO_LIMIT: u64 = u64::MAX;

/// Owned tensors to save views of.
struct Tensors(Vec<(String, Vec<usize>, Vec<f32>)>);

impl Tensors {
    /// Values that no two tensors share, with signs and magnitudes mixed.
    fn new(shapes: &[(&str, &[usize])]) -> Self {
        let tensor = |(i, (name, shape)): (usize, &(&str, &[usize]))| {
            let n: usize = shape.iter().product();
            let values = (0..n).map(|j| ((i * 7919 + j) as f32 * 0.37).sin() * 10f32.powi(j as i32 % 5 - 3)).collect();
            ((*name).to_owned(), shape.to_vec(), values)
        };
        Self(shapes.iter().enumerate().map(tensor).collect())
    }

    fn as_dtype(&self, dtype: SavedDtype) -> Vec<TensorToSave<'_>> {
        self.0.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype }).collect()
    }
}

fn some_tensors() -> Tensors {
    Tensors::new(&[("b.weight", &[3, 5]), ("a.weight", &[4, 2]), ("c.bias", &[7]), ("d.weight", &[2, 2, 2])])
}

fn read(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut values = vec![f32::NAN; checkpoint.shape(name).unwrap().iter().product()];
    checkpoint.read_into(name, &mut values).unwrap();
    values
}

fn rounded(dtype: SavedDtype, value: f32) -> f32 {
    match dtype {
        SavedDtype::F32 => value,
        SavedDtype::Bf16 => half::bf16::from_f32(value).to_f32(),
        SavedDtype::F16 => half::f16::from_f32(value).to_f32(),
    }
}

fn open_error(dir: &Path) -> String {
    format!("{:#}", Checkpoint::open(dir).expect_err("the folder should be refused"))
}

#[test]
fn what_is_saved_reads_back_rounded_to_its_dtype() {
    let tensors = some_tensors();
    for dtype in SavedDtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        let files = save(dir.path(), &tensors.as_dtype(dtype), NO_LIMIT).unwrap();
        assert_eq!(files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["model.safetensors"]);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.dtype(), dtype);
        assert_eq!(checkpoint.n_parameters(), 38);
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a.weight", "b.weight", "c.bias", "d.weight"]);
        for (name, shape, values) in &tensors.0 {
            assert_eq!(checkpoint.shape(name).unwrap(), shape);
            let expected: Vec<f32> = values.iter().map(|value| rounded(dtype, *value)).collect();
            assert_eq!(read(&checkpoint, name), expected, "{name} as {dtype}");
        }
    }
}

#[test]
fn large_tensors_take_the_parallel_paths_and_read_back() {
    // Above the chunk of one reading task, of one writing task and of the writer's buffer, and a multiple of none.
    let tensors = Tensors::new(&[("large", &[4_300_013])]);
    for dtype in SavedDtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &tensors.as_dtype(dtype), NO_LIMIT).unwrap();
        let values = read(&Checkpoint::open(dir.path()).unwrap(), "large");
        let wrong = values.iter().zip(&tensors.0[0].2).position(|(read, saved)| *read != rounded(dtype, *saved));
        assert_eq!(wrong, None, "{dtype}");
    }
}

#[test]
fn shards_hold_the_same_as_one_file() {
    let tensors = some_tensors();
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(one.path(), &tensors.as_dtype(SavedDtype::F32), NO_LIMIT).unwrap();
    // 60 + 32 bytes fit; 28 + 32 do too; no tensor is split.
    let files = save(many.path(), &tensors.as_dtype(SavedDtype::F32), 100).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]);
    let index: serde_json::Value = serde_json::from_str(&fs::read_to_string(many.path().join(&files[2].name)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 152);
    assert_eq!(index["weight_map"]["a.weight"], names[0]);
    assert_eq!(index["weight_map"]["c.bias"], names[1]);
    let (one, many) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(many.path()).unwrap());
    for (name, _, values) in &tensors.0 {
        assert_eq!(&read(&many, name), values);
    }
    assert_eq!(one.names().collect::<Vec<_>>(), many.names().collect::<Vec<_>>());
}

#[test]
fn a_tensor_larger_than_a_shard_has_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let files = save(dir.path(), &some_tensors().as_dtype(SavedDtype::F32), 10).unwrap();
    assert_eq!(files.len(), 5);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().n_parameters(), 38);
}

#[test]
fn mixed_dtypes_keep_their_own_and_the_most_common_counts() {
    let tensors = some_tensors();
    let mut views = tensors.as_dtype(SavedDtype::Bf16);
    views[0].dtype = SavedDtype::F32;
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &views, NO_LIMIT).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.dtype(), SavedDtype::Bf16);
    assert_eq!(checkpoint.tensor_dtype("b.weight").unwrap(), SavedDtype::F32);
    assert_eq!(read(&checkpoint, "b.weight"), tensors.0[0].2);
}

#[test]
fn nan_is_kept_and_a_value_beyond_f16_is_an_error() {
    let values = [f32::NAN, f32::INFINITY, -0.0, 1.0];
    for dtype in SavedDtype::ALL {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &[TensorToSave { name: "x", shape: &[4], values: &values, dtype }], NO_LIMIT).unwrap();
        let read = read(&Checkpoint::open(dir.path()).unwrap(), "x");
        assert!(read[0].is_nan());
        assert_eq!((read[1], read[2].to_bits(), read[3]), (f32::INFINITY, (-0.0f32).to_bits(), 1.0));
    }
    let dir = tempfile::tempdir().unwrap();
    let too_large = TensorToSave { name: "x", shape: &[1], values: &[1e6], dtype: SavedDtype::F16 };
    let message = format!("{:#}", save(dir.path(), &[too_large], NO_LIMIT).unwrap_err());
    assert!(message.contains("tensor `x`") && message.contains("65504"), "{message}");
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = some_tensors();
    save(dir.path(), &tensors.as_dtype(SavedDtype::F32), NO_LIMIT).unwrap();
    let message = format!("{:#}", save(dir.path(), &tensors.as_dtype(SavedDtype::F32), NO_LIMIT).unwrap_err());
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn damaged_files_are_named_with_what_is_wrong() {
    let whole = tempfile::tempdir().unwrap();
    save(whole.path(), &some_tensors().as_dtype(SavedDtype::F32), NO_LIMIT).unwrap();
    let bytes = fs::read(whole.path().join("model.safetensors")).unwrap();
    let header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[0; 32]].concat();
    let overlap = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}"#;
    for (content, words) in [
        (bytes[..bytes.len() - 5].to_vec(), "it is cut short"),
        (bytes[..40].to_vec(), "cut short or not a safetensors file"),
        (bytes[..5].to_vec(), "it has 5 bytes"),
        ([&bytes[..], &[0]].concat(), "describes only"),
        (Vec::new(), "it has 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec(), "git lfs pull"),
        (header(overlap), "overlaps"),
        (header(r#"{"a":{"dtype":"F32","shape":[7],"data_offsets":[0,32]}}"#), "do not match the bytes"),
        (header(r#"{"a":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}}"#), "tensor `a` in"),
        (header(r#"{"a":{"dtype":"F64","shape":[4],"data_offsets":[0,32]}}"#), "f32, bf16 and f16 are supported"),
        (header(r#"{"a":"#), "bad safetensors header"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.safetensors"), content).unwrap();
        let message = open_error(dir.path());
        assert!(message.contains(words), "{message:?} does not say {words:?}");
        assert!(message.contains(dir.path().join("model.safetensors").to_str().unwrap()), "{message:?} does not name the file");
    }
}

#[test]
fn a_folder_without_safetensors_says_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    assert!(open_error(dir.path()).contains("a model folder has config.json"));
    assert!(open_error(&dir.path().join("absent")).contains("there is no such folder"));
    fs::write(dir.path().join("pytorch_model.bin"), "pickle").unwrap();
    assert!(open_error(dir.path()).contains("never pickles"));
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    assert!(open_error(dir.path()).contains("merge it"));
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let sharded = || {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &some_tensors().as_dtype(SavedDtype::F32), 100).unwrap();
        dir
    };
    let first = "model-00001-of-00002.safetensors";
    let rewrite_index = |dir: &Path, from: &str, to: &str| {
        let path = dir.join("model.safetensors.index.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
    };
    let dir = sharded();
    fs::remove_file(dir.path().join(first)).unwrap();
    let message = open_error(dir.path());
    assert!(message.contains("lists 1 shard(s)") && message.contains(first), "{message}");

    let dir = sharded();
    rewrite_index(dir.path(), "\"c.bias\"", "\"e.bias\"");
    let message = open_error(dir.path());
    assert!(message.contains("places the tensor `e.bias` in `model-00002-of-00002.safetensors`, which does not hold it"), "{message}");

    let dir = sharded();
    rewrite_index(dir.path(), &format!("\"{first}\""), "\"../elsewhere.safetensors\"");
    assert!(open_error(dir.path()).contains("only `*.safetensors` files in the same folder are read"));

    let dir = sharded();
    fs::copy(dir.path().join(first), dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(open_error(dir.path()).contains("is both in"));
}

/// A tiny tied Llama's config and tensors.
fn tiny_llama() -> (serde_json::Value, Tensors) {
    let config = json!({"model_type": "llama", "vocab_size": 6, "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": true});
    let expected = expected_tensors(&describe(&config).unwrap());
    let shapes: Vec<(&str, &[usize])> = expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    (config, Tensors::new(&shapes))
}

fn check(config: &serde_json::Value, tensors: &Tensors) -> anyhow::Result<()> {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &tensors.as_dtype(SavedDtype::F32), NO_LIMIT).unwrap();
    check_weights(&describe(config).unwrap(), &Checkpoint::open(dir.path()).unwrap())
}

#[test]
fn missing_unexpected_and_misshapen_tensors_are_listed_together() {
    let (config, mut tensors) = tiny_llama();
    check(&config, &tensors).unwrap();
    tensors.0.retain(|(name, _, _)| name != "model.layers.0.mlp.up_proj.weight");
    tensors.0.push(("score.weight".into(), vec![2], vec![0.0; 2]));
    let norm = tensors.0.iter_mut().find(|(name, _, _)| name == "model.norm.weight").unwrap();
    (norm.1, norm.2) = (vec![3], vec![1.0; 3]);
    let message = format!("{:#}", check(&config, &tensors).unwrap_err());
    for words in [
        "1 missing:\n    model.layers.0.mlp.up_proj.weight",
        "1 unexpected:\n    score.weight",
        "1 misshapen:\n    model.norm.weight (`model.safetensors`): is [3], should be [4]",
    ] {
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

#[test]
fn harmless_extras_are_accepted_but_a_head_that_differs_from_tied_embeddings_is_not() {
    let (config, mut tensors) = tiny_llama();
    tensors.0.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), vec![1], vec![1.0]));
    let mut head = tensors.0[0].clone();
    head.0 = "lm_head.weight".into();
    tensors.0.push(head);
    check(&config, &tensors).unwrap();
    tensors.0.last_mut().unwrap().2[3] += 1.0;
    let message = format!("{:#}", check(&config, &tensors).unwrap_err());
    assert!(message.contains("`lm_head.weight` differs from `model.embed_tokens.weight`"), "{message}");
}

#[test]
fn a_buffer_of_the_wrong_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), &some_tensors().as_dtype(SavedDtype::Bf16), NO_LIMIT).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let message = checkpoint.read_into("c.bias", &mut [0.0; 6]).unwrap_err().to_string();
    assert!(message.contains("`c.bias` has 7 elements"), "{message}");
    assert!(checkpoint.read_into("e", &mut []).unwrap_err().to_string().contains("has no tensor `e`"));
}
