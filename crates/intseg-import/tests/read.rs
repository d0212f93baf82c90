//! Files of weights: what frameworks write is read to the bit, and what would harm is refused with a reason.

use intseg_import::read::{Format, Problem, TensorFault, parse_weights, read_weights};
use intseg_import::tensor::{FloatTensor, Weights};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use zip::CompressionMethod::{Deflated, Stored};
use zip::write::{SimpleFileOptions, ZipWriter};

/// Every fixture that is read, with its bytes.
const FIXTURES: [(&str, Format, &[u8]); 8] = [
    ("plain.safetensors", Format::Safetensors, include_bytes!("fixtures/plain.safetensors")),
    ("plain.npz", Format::Npz, include_bytes!("fixtures/plain.npz")),
    ("compressed.npz", Format::Npz, include_bytes!("fixtures/compressed.npz")),
    ("plain.pth", Format::Torch, include_bytes!("fixtures/plain.pth")),
    ("checkpoint.pth", Format::Torch, include_bytes!("fixtures/checkpoint.pth")),
    ("protocol4.pt", Format::Torch, include_bytes!("fixtures/protocol4.pt")),
    ("legacy.pth", Format::Torch, include_bytes!("fixtures/legacy.pth")),
    ("weights.onnx", Format::Onnx, include_bytes!("fixtures/weights.onnx")),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// What the script that wrote the fixtures says they hold.
fn expected() -> Weights {
    #[derive(serde::Deserialize)]
    struct Bits {
        shape: Vec<usize>,
        bits: Vec<i32>,
    }
    let all: BTreeMap<String, Bits> = serde_json::from_str(include_str!("fixtures/expected.json")).unwrap();
    let tensor =
        |t: Bits| FloatTensor { shape: t.shape, data: t.bits.iter().map(|&b| f32::from_bits(b as u32)).collect() };
    all.into_iter().map(|(name, bits)| (name, tensor(bits))).collect()
}

#[test]
fn every_format_has_the_framework_s_values_to_the_bit() {
    for (name, format, bytes) in FIXTURES {
        assert_eq!(Format::of(Path::new(name)), Some(format));
        let (read, parsed) = (read_weights(&fixture(name)).unwrap(), parse_weights(format, bytes).unwrap());
        assert_eq!(read, parsed, "{name}");
        for (tensor, wanted) in expected() {
            let found = &read[&tensor];
            assert_eq!(found.shape, wanted.shape, "{name}: {tensor}");
            let bits = |t: &FloatTensor| t.data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(found), bits(&wanted), "{name}: {tensor}");
        }
        assert_eq!(read.len(), expected().len(), "{name} has more than float tensors");
    }
}

fn refused(format: Format, bytes: &[u8], parts: &[&str]) -> Problem {
    let problem = parse_weights(format, bytes).expect_err("the file should be refused");
    let message = problem.to_string();
    parts.iter().for_each(|part| assert!(message.contains(part), "{message:?} does not say {part:?}"));
    problem
}

#[test]
fn errors_name_the_file() {
    let message = |name: &str| read_weights(&fixture(name)).unwrap_err().to_string();
    assert!(message("expected.json").contains("expected.json: is no .safetensors"));
    assert!(message("missing.npz").contains("missing.npz: cannot be read"));
}

#[test]
fn every_truncated_file_is_refused() {
    for (name, format, bytes) in FIXTURES {
        for length in 0..bytes.len() {
            let result = parse_weights(format, &bytes[..length]);
            // A protobuf message that ends between two of its parts is a shorter message.
            assert!(result.is_err() || format == Format::Onnx, "{name} cut to {length} bytes");
        }
    }
}

// ---- safetensors

fn safetensors(header: &str, values: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), values].concat()
}

#[test]
fn a_safetensors_header_is_believed_as_far_as_the_file_goes() {
    let refused = |bytes: &[u8], parts: &[&str]| refused(Format::Safetensors, bytes, parts);
    refused(&[], &["the safetensors header", "the file ends in its length"]);
    let huge = [&(1u64 << 60).to_le_bytes()[..], b"{}"].concat();
    refused(&huge, &["1152921504606846976", "at most 8388608"]);
    refused(&[&9u64.to_le_bytes()[..], b"{}"].concat(), &["it claims 9 bytes and has 2"]);
    refused(&safetensors("nonsense", &[]), &["the safetensors header is damaged"]);
    let overflow = r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,4]}}"#;
    refused(&safetensors(overflow, &[0; 4]), &["the safetensors header"]);
    let long = r#"{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}"#;
    refused(&safetensors(long, &[0; 4]), &["the safetensors header"]);
    let twice = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    refused(&safetensors(twice, &[0; 4]), &["tensor w occurs twice"]);
    let small = r#"{"w":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#;
    refused(&safetensors(small, &[0; 1]), &["tensor w has elements of type F8_E4M3"]);
    let one = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    refused(&safetensors(one, &[0, 0, 0, 0, 0, 0, 0x80, 0xff]), &["tensor w holds -inf at index 1"]);
    let integer = r#"{"w":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#;
    refused(&safetensors(integer, &[0; 8]), &["holds no float tensor"]);
    let deep = format!(r#"{{"w":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    refused(&safetensors(&deep, &[]), &["the safetensors header is damaged", "recursion limit"]);
}

// ---- zip archives

fn archive(entries: &[(&str, &[u8])], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Replaces every occurrence of a number or name of an archive's headers.
fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let at: Vec<usize> = (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    assert!(!at.is_empty());
    at.iter().for_each(|&at| bytes[at..at + to.len()].copy_from_slice(to));
    bytes
}

fn npy(header: &str, values: &[u8]) -> Vec<u8> {
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), values].concat()
}

#[test]
fn an_array_whose_header_lies_is_refused() {
    let refused = |header: &str, values: &[u8], parts: &[&str]| {
        refused(Format::Npz, &archive(&[("w.npy", &npy(header, values))], Stored), parts)
    };
    let header =
        |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    refused(&header("<f4", "(3,)"), &[0; 8], &["tensor w has 8 bytes", "[3]", "takes 12"]);
    refused(&header("<f4", "(1152921504606846976, 16)"), &[0; 8], &["tensor w has an impossible shape"]);
    refused(&header("<f4", "(4294967296,)"), &[0; 8], &["values up to tensor w: 4294967296"]);
    refused(&header("|O", "(1,)"), b"cos\nsystem\n.", &["tensor w has elements of type |O"]);
    refused(&header(">f4", "(1,)"), &[0; 4], &["tensor w has elements of type >f4"]);
    refused("{'descr': __import__('os')}", &[0; 4], &["the header of w.npy is damaged"]);
    refused(&header("<f4", "(2,)"), &[0, 0, 0, 0, 0, 0, 0xc0, 0x7f], &["tensor w holds NaN at index 1"]);
    let short = [b"\x93NUMPY\x02\x00", &u32::MAX.to_le_bytes()[..], b"{}"].concat();
    refused_npz(&[("w.npy", &short)], &["the header of w.npy is damaged", "length is wrong"]);
    refused_npz(&[("w.npy", b"\x93NUMPY\x09\x00")], &["the header of w.npy"]);
    refused_npz(&[("readme.txt", b"")], &["readme.txt is damaged: it is no .npy array"]);
}

fn refused_npz(entries: &[(&str, &[u8])], parts: &[&str]) {
    refused(Format::Npz, &archive(entries, Stored), parts);
}

#[test]
fn two_entries_of_one_name_are_refused() {
    let array = npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", &[0; 4]);
    let bytes = archive(&[("aa.npy", &array), ("ab.npy", &array)], Stored);
    parse_weights(Format::Npz, &bytes).unwrap();
    refused(Format::Npz, &replace(&bytes, b"ab.npy", b"aa.npy"), &["the zip archive is damaged", "same name"]);
}

#[test]
fn entries_that_share_bytes_are_refused() {
    let array = npy("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", &[0; 4]);
    let bytes = archive(&[("aa.npy", &array), ("ab.npy", &array)], Stored);
    let central = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let mut shared = bytes.clone();
    shared[central + 42..central + 46].copy_from_slice(&[0; 4]);
    refused(Format::Npz, &shared, &["is damaged"]);
}

#[test]
fn a_bomb_is_refused_by_what_it_claims_and_by_what_it_holds() {
    // 64 MiB of zeros in 64 kB: what the pickle needs is far less, and so is what it may take.
    let zeros = vec![0; 64 << 20];
    let bomb = archive(&[("a/data.pkl", &zeros)], Deflated);
    assert!(bomb.len() < 100_000);
    refused(Format::Torch, &bomb, &["bytes of a/data.pkl: 67108864, where at most 8388608 are read"]);
    // The same, claiming that it has a hundred bytes.
    let lie = replace(&bomb, &(64u32 << 20).to_le_bytes(), &100u32.to_le_bytes());
    refused(Format::Torch, &lie, &["a/data.pkl is damaged"]);
    // And a storage that inflates to more than its tensor has.
    let pickle = state_dict(&[("w", "0", 4, 0, &[4], &[1])]);
    let bomb = archive(&[("a/data.pkl", &pickle), ("a/data/0", &zeros)], Deflated);
    refused(Format::Torch, &bomb, &["bytes of a/data/0: 67108864, where at most 16 are read"]);
    // Claims of memory that the file does not back get none.
    let small = archive(&[("w.npy", &npy("", &[]))], Deflated);
    let size = (npy("", &[]).len() as u32).to_le_bytes();
    let central = small.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    let mut claim = small.clone();
    assert_eq!(claim[central + 24..central + 28], size);
    claim[central + 24..central + 28].copy_from_slice(&0xf000_0000u32.to_le_bytes());
    refused(Format::Npz, &claim, &["w.npy is damaged"]);
}

// ---- PyTorch

/// A tensor of a pickle: its name, storage, the storage's values, offset, shape and strides.
type Pickled<'a> = (&'a str, &'a str, u64, i32, &'a [u64], &'a [u64]);

/// A pickle of tensors in an `OrderedDict`, as `torch.save` writes it.
fn state_dict(tensors: &[Pickled]) -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let long = |out: &mut Vec<u8>, value: u64| {
        out.extend([0x8a, 8]);
        out.extend(value.to_le_bytes());
    };
    let mut out = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
    for (name, storage, count, offset, shape, strides) in tensors {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(b"ctorch\nFloatStorage\n");
        text(&mut out, storage);
        text(&mut out, "cpu");
        long(&mut out, *count);
        out.extend(b"tQJ");
        out.extend(offset.to_le_bytes());
        for sizes in [shape, strides] {
            out.push(b'(');
            sizes.iter().for_each(|&size| long(&mut out, size));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn torch(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    archive(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", storage), ("a/version", b"3\n")], Stored)
}

#[test]
fn a_pickle_that_calls_the_system_is_refused_and_nothing_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.pth");
    let touched = dir.path().join("touched");
    let command = format!("touch {}", touched.display());
    let mut pickle = b"\x80\x02cos\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    std::fs::write(&path, torch(&pickle, &[])).unwrap();
    let message = read_weights(&path).unwrap_err().to_string();
    assert!(message.contains("evil.pth: its pickle asks for os.system (byte 2)"), "{message}");
    assert!(message.contains("not called"), "{message}");
    assert!(!touched.exists());
}

#[test]
fn views_that_leave_or_repeat_their_storage_are_refused() {
    let refused = |tensor, parts: &[&str]| refused(Format::Torch, &torch(&state_dict(&[tensor]), &[0; 16]), parts);
    let read = parse_weights(Format::Torch, &torch(&state_dict(&[("w", "0", 4, 1, &[3], &[1])]), &[0; 16])).unwrap();
    assert_eq!(read["w"], FloatTensor { shape: vec![3], data: vec![0.0; 3] });
    refused(("w", "0", 4, 2, &[3], &[1]), &["tensor w is a view of 5 values in a storage of 4"]);
    refused(("w", "0", 4, 0, &[2, 2], &[3, 1]), &["tensor w is a view of 5 values"]);
    refused(("w", "0", 4, 0, &[1 << 20], &[0]), &["tensor w is a view of 1048576 values in a storage of 4"]);
    refused(("w", "0", 4, 0, &[2], &[u64::MAX >> 1]), &["tensor w is a view of 9223372036854775808 values"]);
    refused(("w", "0", 4, 0, &[1 << 40, 1 << 40], &[1, 1]), &["tensor w has an impossible shape"]);
    refused(("w", "0", 4, 0, &[2, 2], &[1]), &["tensor w has an impossible shape"]);
    refused(("w", "0", 4, -1, &[2], &[1]), &["a size is no number from 0"]);
    refused(("w", "0", 4, 0, &[1; 9], &[1; 9]), &["a tensor has 9 dimensions"]);
    refused(("w", "0", 5, 0, &[2], &[1]), &["tensor w is a view of 5 values in a storage of 4"]);
    refused(("w", "9", 4, 0, &[2], &[1]), &["a/data/9 is damaged"]);
    refused(("w", "../../etc/passwd", 4, 0, &[2], &[1]), &["a/data/../../etc/passwd is damaged"]);
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let tensor = ("w", "0", 4, 0, &[4][..], &[1][..]);
    let bytes = torch(&state_dict(&[tensor, tensor]), &[0; 16]);
    assert!(matches!(
        refused(Format::Torch, &bytes, &["tensor w occurs twice"]),
        Problem::Tensor { fault: TensorFault::Repeated, .. }
    ));
}

#[test]
fn what_is_no_state_dict_is_refused_with_what_it_is() {
    let refused = |pickle: &[u8], parts: &[&str]| refused(Format::Torch, &torch(pickle, &[0; 16]), parts);
    refused(b"\x80\x02N.", &["its value is no dictionary", "torch.save(model.state_dict()"]);
    refused(b"\x80\x02}X\x03\x00\x00\x00netNs.", &["its keys are \"net\""]);
    refused(b"\x80\x02}X\x05\x00\x00\x00model}NNss.", &["whose keys are no strings"]);
    refused(b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00wNss.", &["tensor w is no tensor"]);
    refused(b"\x80\x02}.", &["holds no float tensor"]);
    let no_pickle = archive(&[("a/data/0", &[0; 16])], Stored);
    assert!(parse_weights(Format::Torch, &no_pickle).unwrap_err().to_string().contains("torch.save did not write it"));
    let big = archive(&[("a/data.pkl", b"\x80\x02}."), ("a/byteorder", b"big")], Stored);
    assert!(parse_weights(Format::Torch, &big).unwrap_err().to_string().contains("byte order"));
}

#[test]
fn values_that_are_not_finite_are_named() {
    let values: Vec<u8> = [1.0f32, f32::NAN, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let whole = torch(&state_dict(&[("w", "0", 4, 0, &[4], &[1])]), &values);
    refused(Format::Torch, &whole, &["tensor w holds NaN at index 1"]);
    // A view is judged by its own values, and the index is the view's.
    let view = torch(&state_dict(&[("w", "0", 4, 0, &[2], &[2])]), &values);
    assert_eq!(parse_weights(Format::Torch, &view).unwrap()["w"].data, [1.0, 3.0]);
    let view = torch(&state_dict(&[("w", "0", 4, 0, &[2, 2], &[1, 2])]), &values);
    refused(Format::Torch, &view, &["tensor w holds NaN at index 2"]);
}

/// A file of PyTorch before 1.6 with this state dict's pickle and these keys' storages.
fn legacy(pickle: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.");
    file.extend(pickle);
    file.extend(b"\x80\x02](");
    for (key, ..) in storages {
        file.extend([b'X', key.len() as u8, 0, 0, 0]);
        file.extend(key.as_bytes());
    }
    file.extend(b"e.");
    for (_, count, bytes) in storages {
        file.extend(count.to_le_bytes());
        file.extend(*bytes);
    }
    file
}

#[test]
fn a_file_of_early_pytorch_is_held_to_its_keys_and_counts() {
    let pickle = state_dict(&[("w", "0", 4, 1, &[3], &[1])]);
    let values: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let whole = legacy(&pickle, &[("0", 4, &values)]);
    assert_eq!(parse_weights(Format::Torch, &whole).unwrap()["w"].data, [2.0, 3.0, 4.0]);
    let refused = |storages: &[(&str, u64, &[u8])], parts: &[&str]| {
        refused(Format::Torch, &legacy(&pickle, storages), parts);
    };
    refused(&[], &["storage 0 is damaged: it is not in the file"]);
    refused(&[("0", 5, &values)], &["storage 0 is damaged: it has 5 values where its tensors have 4"]);
    refused(&[("0", 4, &values[..15])], &["storage 0 is damaged: the file ends in it: 15 bytes are left"]);
    refused(&[("1", 4, &values)], &["storage 1 is damaged: no tensor says what it holds"]);
    refused(&[("0", 4, &values), ("0", 4, &values)], &["storage 0 is damaged: it occurs twice"]);
    let huge = legacy(&state_dict(&[("w", "0", 1 << 62, 0, &[3], &[1])]), &[("0", 1 << 62, &values)]);
    let message = parse_weights(Format::Torch, &huge).unwrap_err().to_string();
    assert!(message.contains("16 bytes are left for 4611686018427387904 values"), "{message}");
    let other = parse_weights(Format::Torch, b"\x80\x02}.").unwrap_err().to_string();
    assert!(other.contains("another kind than torch.save's"), "{other}");
    // Magic number and version, and then another byte order.
    let big = replace(&whole, b"\x88s.", b"\x89s.");
    assert!(parse_weights(Format::Torch, &big).unwrap_err().to_string().contains("byte order"));
    let newer = replace(&whole, b"M\xe9\x03.", b"M\xea\x03.");
    assert!(matches!(parse_weights(Format::Torch, &newer), Err(Problem::Legacy)));
}

#[test]
fn tensors_and_parameters_of_the_first_versions_are_read() {
    let storage = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQ";
    let tensor = [b"ctorch._utils\n_rebuild_tensor\n", &storage[..], b"K\x00K\x02K\x02\x86K\x01K\x02\x86tR"].concat();
    let parameter = [b"ctorch.nn.parameter\nParameter\n", &tensor[..], b"\x85R\x88\x89N\x87b"].concat();
    let pickle = [b"\x80\x02}X\x01\x00\x00\x00w", &parameter[..], b"s."].concat();
    let values: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let weights = parse_weights(Format::Torch, &legacy(&pickle, &[("0", 4, &values)])).unwrap();
    assert_eq!(weights["w"], FloatTensor { shape: vec![2, 2], data: vec![1.0, 3.0, 2.0, 4.0] });
    // A storage that is a part of another has its place where None was.
    let part = replace(&pickle, b"K\x04NtQ", b"K\x04)tQ");
    let message = parse_weights(Format::Torch, &legacy(&part, &[("0", 4, &values)])).unwrap_err().to_string();
    assert!(message.contains("a storage is a part of another"), "{message}");
}

// ---- ONNX

fn onnx(tensors: Vec<intseg_import::onnx::proto::Tensor>) -> Vec<u8> {
    use intseg_import::onnx::proto::{Graph, Model};
    use prost::Message;
    Model { graph: Some(Graph { initializer: tensors, ..Graph::default() }), ..Model::default() }.encode_to_vec()
}

#[test]
fn an_initialiser_that_lies_is_refused() {
    use intseg_import::onnx::proto::Tensor;
    let refused = |tensors: Vec<Tensor>, parts: &[&str]| refused(Format::Onnx, &onnx(tensors), parts);
    let good =
        Tensor { name: "w".into(), data_type: 1, dims: vec![2], float_data: vec![1.0, 2.0], ..Tensor::default() };
    assert_eq!(parse_weights(Format::Onnx, &onnx(vec![good.clone()])).unwrap()["w"].data, [1.0, 2.0]);
    refused(vec![good.clone(), good.clone()], &["tensor w occurs twice"]);
    refused(vec![Tensor { dims: vec![3], ..good.clone() }], &["tensor w has 8 bytes", "takes 12"]);
    refused(vec![Tensor { dims: vec![-1], ..good.clone() }], &["tensor w", "a size is negative"]);
    refused(vec![Tensor { dims: vec![i64::MAX, 4], ..good.clone() }], &["tensor w has an impossible shape"]);
    refused(vec![Tensor { dims: vec![1 << 40], ..good.clone() }], &["values up to tensor w"]);
    refused(vec![Tensor { data_location: 1, ..good.clone() }], &["tensor w keeps its values in another file"]);
    refused(vec![Tensor { data_type: 17, ..good.clone() }], &["tensor w has elements of type 17"]);
    refused(vec![Tensor { raw_data: vec![0; 7].into(), ..good.clone() }], &["tensor w has 7 bytes", "takes 8"]);
    refused(vec![Tensor { float_data: vec![0.0, f32::INFINITY], ..good }], &["tensor w holds inf at index 1"]);
    refused(vec![], &["holds no float tensor"]);
    let nothing = parse_weights(Format::Onnx, b"").unwrap_err().to_string();
    assert!(nothing.contains("it has no graph"), "{nothing}");
    // A graph that claims 2^60 bytes.
    let claim = [0x3a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10];
    assert!(parse_weights(Format::Onnx, &claim).is_err());
}

// ---- anything

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Reading ends with weights that hold to their own shapes, or with an error.
    #[test]
    fn damaged_files_are_read_or_refused_and_nothing_panics(
        which in 0..FIXTURES.len(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (_, format, bytes) = FIXTURES[which];
        let mut bytes = bytes.to_vec();
        flips.iter().for_each(|(at, flip)| bytes[at.index(FIXTURES[which].2.len())] ^= flip);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        for tensor in parse_weights(format, &bytes).unwrap_or_default().values() {
            prop_assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
            prop_assert!(tensor.data.iter().all(|v| v.is_finite()));
        }
    }
}
