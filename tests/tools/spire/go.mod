// Names the SPIRE that the tests run; .ci/deps builds its programs in the module's own directory, with its own versions.
module cloudhub.dev/tests/tools/spire

go 1.25.3

require github.com/spiffe/spire v1.13.3
