#!/bin/bash
# athanor tokenizer train, encode, decode, info: results, messages and exit codes.
set -u
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
golden=$ATHANOR_SOURCE/tests/golden/tokenizer
failed=0

# expect CODE PART COMMAND...: runs it on what stands on standard input; its exit code and a part of what it prints.
expect() {
    local code=$1 part=$2 output
    shift 2
    output=$("$@" 2>&1)
    local got=$?
    if [ "$got" != "$code" ] || [[ "$output" != *"$part"* ]]; then
        echo "FAILED: $* gave $got, expected $code and '$part': $output"
        failed=1
    fi
}

athanor=$ATHANOR
tokenizer=$folder/tokenizer.json
expect 0 "400 tokens, learned from 19 documents" \
    "$athanor" tokenizer train --input "$golden/trained.jsonl" --vocab-size 400 --out "$tokenizer" --workers 2
cmp "$tokenizer" "$golden/trained.json" || failed=1
expect 0 "end of text  399" "$athanor" tokenizer info "$tokenizer"
expect 0 "gpt4: '(?i:[sdmt]" "$athanor" tokenizer info "$golden/tiny.cl100k.tiktoken"
expect 0 "the vocabulary has" \
    "$athanor" tokenizer train --input "$golden/trained.jsonl" --vocab-size 100000 --out "$folder/big.json" --pattern llama3
expect 0 "256 tokens" "$athanor" tokenizer train --input "$golden/*.jsonl" --vocab-size 256 --out "$folder/bytes.json"
expect 0 "learned from 2 documents" \
    "$athanor" tokenizer train --input "$golden/trained.jsonl" --vocab-size 300 --out "$folder/part.json" --max-bytes 150

printf 'The furnace<|endoftext|> \xc3\xa9' > "$folder/text"
expect 0 " 399 " "$athanor" tokenizer encode --special --tokenizer "$tokenizer" < "$folder/text"
"$athanor" tokenizer encode --special --tokenizer "$tokenizer" < "$folder/text" > "$folder/ids"
"$athanor" tokenizer decode --tokenizer "$tokenizer" < "$folder/ids" | cmp - "$folder/text" || failed=1
expect 0 "The furnace "$'\xc3\xa9' "$athanor" tokenizer decode --no-special --tokenizer "$tokenizer" < "$folder/ids"
[ "$("$athanor" tokenizer encode --count --tokenizer "$folder/bytes.json" < "$folder/text")" = 27 ] || failed=1
[ "$(printf 'AB' | "$athanor" tokenizer encode --tokenizer "$folder/bytes.json")" = "65 66" ] || failed=1
[ "$("$athanor" tokenizer encode --count --tokenizer "$tokenizer" < /dev/null)" = 0 ] || failed=1
"$athanor" tokenizer encode --tokenizer "$tokenizer" < "$athanor" > /dev/null 2> "$folder/error"
{ [ $? = 1 ] && [ "$(wc -l < "$folder/error")" = 1 ]; } || failed=1

printf 'abc\xff' | expect 1 "not UTF-8 at byte 3" "$athanor" tokenizer encode --tokenizer "$tokenizer"
printf 'abc\xe2\x82' | expect 1 "not UTF-8 at byte 3" "$athanor" tokenizer encode --tokenizer "$tokenizer"
printf '1 2 x3' | expect 1 "word 3, 'x3', is no id from 0 to 399" "$athanor" tokenizer decode --tokenizer "$tokenizer"
printf '400' | expect 1 "word 1, '400'" "$athanor" tokenizer decode --tokenizer "$tokenizer"
printf '%s' -1 | expect 1 "word 1, '-1'" "$athanor" tokenizer decode --tokenizer "$tokenizer"
expect 2 "--tokenizer is missing" "$athanor" tokenizer encode < /dev/null
expect 2 "--input is missing" "$athanor" tokenizer train --out "$folder/x.json"
expect 2 "--out is missing" "$athanor" tokenizer train --input "$golden/trained.jsonl"
expect 2 "vocab-size is 255" "$athanor" tokenizer train --input "$golden/trained.jsonl" --vocab-size 255 --out "$folder/x.json"
expect 1 "nowhere" "$athanor" tokenizer train --input "$folder/nowhere.jsonl" --out "$folder/x.json"
expect 1 "nowhere" "$athanor" tokenizer info "$folder/nowhere.json"
echo '{"text": 3}' > "$folder/bad.jsonl"
expect 1 "more than 0 bad lines" \
    "$athanor" tokenizer train --input "$folder/bad.jsonl" --max-bad-lines 0 --out "$folder/x.json"
expect 1 "there is no text in the input" "$athanor" tokenizer train --input "$folder/bad.jsonl" --out "$folder/x.json"
for _ in $(seq 40); do echo "a line of text that is no shard's"; done > "$folder/text.txt"
expect 1 "athanor data pack" "$athanor" tokenizer train --input "$folder/text.txt" --out "$folder/x.json"
expect 1 "athanor data pack" \
    "$athanor" tokenizer train --input "$folder/text.txt" --max-bad-lines 9 --out "$folder/x.json"
[ "$("$athanor" tokenizer train --input "$folder/text.txt" --out "$folder/x.json" 2>&1 | wc -l)" = 11 ] || failed=1
cat "$folder/text.txt" "$golden/trained.jsonl" > "$folder/mixed.jsonl"
expect 0 "40 bad lines skipped" \
    "$athanor" tokenizer train --input "$folder/mixed.jsonl" --vocab-size 300 --out "$folder/mixed.json"
[ ! -e "$folder/x.json" ] || failed=1
for command in train encode decode info; do
    expect 0 "example:" "$athanor" tokenizer $command --help
done
exit $failed
