//! Links clang's libFuzzer, which comes with Debian's libclang-rt package; scripts/fuzz says where
//! it lies.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBFUZZER");
    let Ok(library) = std::env::var("LIBFUZZER") else {
        panic!("LIBFUZZER names no libclang_rt.fuzzer archive; use scripts/fuzz");
    };
    println!("cargo:rustc-link-arg={library}");
    println!("cargo:rustc-link-arg=-lstdc++");
}
