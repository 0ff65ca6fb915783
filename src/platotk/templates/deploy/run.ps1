# Sets up .venv beside this file the first time, then serves the agent.
$ErrorActionPreference = "Stop"
$env:ORT_DISABLE_TELEMETRY = "1"
Set-Location $PSScriptRoot
function Invoke-Checked { & $args[0] @($args | Select-Object -Skip 1); if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE } }
if (-not (Test-Path .venv/.complete)) {
    $python = if ($env:PYTHON) { $env:PYTHON } else { "python" }
    Invoke-Checked $python -m venv .venv
    Invoke-Checked .venv\Scripts\python.exe -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.txt
    Invoke-Checked .venv\Scripts\python.exe -m pip install --quiet --disable-pip-version-check --no-deps --no-index ./@WHEEL@
    New-Item -ItemType File .venv/.complete | Out-Null
}
& .venv\Scripts\plato.exe serve agent @args
exit $LASTEXITCODE
