# make demo, make test: from a fresh Debian 12 to a result. Each call does the set-up that is still
# missing (launch/setup.sh) and builds what changed. The build itself is CMake's.
BUILD := build

.PHONY: build test demo clean
build:
	@launch/setup.sh $(BUILD)

test: build
	@.venv/bin/ctest --test-dir $(BUILD) --output-on-failure --parallel $$(nproc)

demo: build
	@launch/demo.sh

clean:
	rm -rf $(BUILD)
